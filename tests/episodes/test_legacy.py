"""The seed's own files, written here as its logger writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brain_service.episodes.reader import Episode, read_episodes
from brain_service.errors import CorruptDataError, InvalidError


def seed_step(i: int, **changes: Any) -> dict[str, Any]:
    return {
        "observation": {"command": [0.1 * i, 0.2]},
        "action": {"command": [0.15, 0.25 * i]},
        "reward": 0.5,
        "is_terminal": False,
        "step_metadata": {"timestamp": 1_700_000_000.25 + i},
    } | changes


def write_lines(path: Path, documents: list[Any]) -> Path:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def read_one(path: Path) -> Episode:
    (found,) = read_episodes(path)
    return found


def test_the_seeds_jsonl(tmp_path: Path) -> None:
    steps = [seed_step(i, episode_id="7f3a") for i in range(3)] + [
        seed_step(3, is_terminal=True, episode_id="7f3a")
    ]
    found = read_one(write_lines(tmp_path / "x.jsonl", steps))
    assert (found.episode_id, found.end, len(found)) == ("7f3a", "terminated", 4)
    np.testing.assert_array_equal(
        found.observation["command"], np.array([[0.1 * i, 0.2] for i in range(4)], np.float32)
    )
    assert np.asarray(found.action["command"]).dtype == np.float32
    assert found.timestamp_ns[1] - found.timestamp_ns[0] == 10**9
    assert found.timestamp_ns[0] == 1_700_000_000_250_000_000
    assert found.control_role == ["expert"] * 4
    assert found.is_terminal.tolist() == [False, False, False, True]


def test_the_seeds_json(tmp_path: Path) -> None:
    metadata = {
        "episode_id": "9c1d",
        "environment_id": "pi5-dev",
        "xr_mode": "trainer",
        "control_role": "human_teleop",
        "tags": ["kitchen"],
        "robot_id": None,
        "created_at": "2026-01-01T00:00:00+00:00",
    }
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"metadata": metadata, "steps": [seed_step(i) for i in range(2)]}, indent=2))
    found = read_one(path)
    assert (found.episode_id, found.end) == ("9c1d", "truncated")
    assert found.metadata["tags"] == ["kitchen"]
    assert found.control_role == ["expert", "expert"]


def test_one_file_may_hold_several_episodes(tmp_path: Path) -> None:
    steps = [seed_step(i, episode_id=name) for name in ("a", "b") for i in range(2)]
    documents = [{"metadata": {"episode_id": "c"}, "steps": [seed_step(0)]}, {"steps": [seed_step(0)] * 3}]
    found = list(read_episodes(write_lines(tmp_path / "x.jsonl", [*steps, *documents])))
    assert [(episode.episode_id, len(episode)) for episode in found] == [("a", 2), ("b", 2), ("c", 1), ("x", 3)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"obs": {"s": 1}, "done": True, "observation": None, "is_terminal": None}, ("obs form", {"s"}, True)),
        ({"observation": [1, 2], "action": [3]}, ("bare arrays", {"state"}, False)),
        ({"step_metadata": {"timestamp_ns": 12, "control_role": "autonomous"}}, ("own role", {"command"}, False)),
        ({"step_metadata": None, "timestamp": 2.5}, ("flat time", {"command"}, False)),
    ],
)
def test_variants_are_understood(
    tmp_path: Path, changes: dict[str, Any], expected: tuple[str, set[str], bool]
) -> None:
    body = {name: value for name, value in (seed_step(0) | changes).items() if value is not None}
    found = read_one(
        write_lines(tmp_path / "x.jsonl", [body]) if "obs" not in body else write_json(tmp_path, [body])
    )
    name, paths, terminal = expected
    assert set(found.observation) == paths
    assert bool(found.is_terminal[0]) is terminal
    if name == "own role":
        assert (found.control_role, found.timestamp_ns[0]) == (["policy"], 12)
    if name == "flat time":
        assert found.timestamp_ns[0] == 2_500_000_000


def write_json(root: Path, document: Any) -> Path:
    path = root / "x.json"
    path.write_text(json.dumps(document))
    return path


def test_a_seed_log_torn_by_a_kill_keeps_its_whole_steps(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [seed_step(i) for i in range(3)])
    path.write_bytes(path.read_bytes()[:-30])
    assert len(read_one(path)) == 2


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('{"observation": {"a": 1}, "action": {"a": 1}}\nnonsense\n', CorruptDataError, r"x\.jsonl:2: no JSON"),
        (
            '{"observation": {"a": 1}, "action": {"a": 1}}\n{"observation": {"a": [1, 2]}, "action": {"a": 1}}\n',
            InvalidError,
            r"x\.jsonl:2: observation/a: expected shape",
        ),
        ('{"observation": {"a": NaN}, "action": {"a": 1}}\n', InvalidError, r"x\.jsonl:1: observation/a"),
        ('{"observation": {"a": 1}}\n', InvalidError, r"x\.jsonl:1: a step needs"),
        ('{"observation": {"a": 1}, "action": {"a": 1}, "reward": "x"}\n', InvalidError, "reward"),
        (
            '{"observation": {"a": 1}, "action": {"a": 1}, "step_metadata": {"timestamp": Infinity}}\n',
            InvalidError,
            r"x\.jsonl:1: timestamp",
        ),
        ('{"observation": {"a": 1}, "action": {"a": 1}}\n3\n', InvalidError, r"x\.jsonl:2: a step is an object"),
        ('{"metadata": {}, "steps": []}\n', InvalidError, "holds no steps"),
    ],
)
def test_a_bad_file_is_refused_by_file_and_line(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(error, match=message):
        list(read_episodes(path))


@pytest.mark.parametrize("document", [{}, [], {"metadata": {}, "steps": []}, 3, "text"])
def test_a_json_document_without_steps_is_refused(tmp_path: Path, document: Any) -> None:
    with pytest.raises(InvalidError):
        list(read_episodes(write_json(tmp_path, document)))


def test_a_cut_json_document_is_corrupt(tmp_path: Path) -> None:
    path = write_json(tmp_path, {"steps": [seed_step(0)]})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CorruptDataError, match=r"x\.json:1: no JSON"):
        list(read_episodes(path))


@pytest.mark.parametrize(("metadata", "reward"), [("[1]", "0"), ('"abc"', "0"), ("{}", "9" * 400)])
def test_garbled_metadata_or_reward_is_the_files_fault(tmp_path: Path, metadata: str, reward: str) -> None:
    path = tmp_path / "odd.json"
    step = f'{{"observation":{{"s":[1]}},"action":{{"c":[1]}},"reward":{reward}}}'
    path.write_text(f'{{"metadata":{metadata},"steps":[{step}]}}')
    with pytest.raises(InvalidError):
        list(read_episodes(path))
