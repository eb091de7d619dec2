"""`EpisodeLogger` as the seed's example calls it, and as it should not be called."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import brain_service
from brain_service.datasets.sources import take_inventory
from brain_service.episodes.log import EpisodeFile
from brain_service.episodes.logger import EpisodeLogger
from brain_service.episodes.publishing import publish_document
from brain_service.episodes.reader import read_episode, read_episodes
from brain_service.errors import ConflictError, InvalidError


def test_the_seeds_example(tmp_path: Path) -> None:
    logger = brain_service.EpisodeLogger(str(tmp_path), format="jsonl")
    episode_id = logger.start_episode(environment_id="pi5-dev", xr_mode="trainer")
    for _ in range(100):
        logger.log_step(obs={"command": [0.1, 0.2]}, action={"command": [0.15, 0.25]}, reward=0.5, done=False)
    path = logger.end_episode()
    logger.close()
    assert path == tmp_path / f"{episode_id}.jsonl"
    found = read_episode(path)
    assert (len(found), found.end) == (100, "truncated")
    assert (found.metadata["environment_id"], found.metadata["xr_mode"]) == ("pi5-dev", "trainer")
    np.testing.assert_array_equal(found.action["command"], np.array([[0.15, 0.25]] * 100, np.float32))


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_done_ends_it_as_terminated(tmp_path: Path, form: Any) -> None:
    with EpisodeLogger(tmp_path, format=form) as logger:
        logger.start_episode(tags=["a"], operator="Ann", control_role="human_supervisor")
        logger.log_step({"x": 1}, {"a": 1}, done=True)
        path = logger.end_episode()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    (found,) = read_episodes(path)
    assert (found.end, found.is_terminal.tolist(), found.control_role) == ("terminated", [True], ["expert"])
    assert (found.metadata["tags"], found.metadata["operator"]) == (["a"], "Ann")


def test_the_json_document_has_the_seeds_shape(tmp_path: Path) -> None:
    with EpisodeLogger(tmp_path, format="json") as logger:
        episode_id = logger.start_episode(environment_id="pi5-dev")
        logger.log_step({"x": [0.1]}, {"a": 1}, reward=0.5, timestamp_ns=3)
        document = json.loads(logger.end_episode().read_text())
    assert document["metadata"]["episode_id"] == episode_id
    assert document["metadata"]["environment_id"] == "pi5-dev"
    assert document["steps"] == [
        {
            "observation": {"x": [0.1]},
            "action": {"a": 1.0},
            "reward": 0.5,
            "is_terminal": False,
            "step_metadata": {"timestamp_ns": 3, "step_index": 0, "control_role": "expert"},
            "episode_id": episode_id,
        }
    ]


def test_numpy_values_keep_their_kind(tmp_path: Path) -> None:
    with EpisodeLogger(tmp_path) as logger:
        logger.start_episode()
        observation = {
            "f64": np.array([0.1]),
            "i32": np.array([[1, -2]], np.int32),
            "u8": np.zeros((2, 2), np.uint8),
            "flag": np.bool_(True),
            "scalar": np.float64(0.1),
            "list": [1, 2],
            "word": "go",
        }
        logger.log_step(observation, {"a": 1}, reward=np.float32(0.1))
        path = logger.end_episode()
    spec = read_episode(path).spec.observation
    kinds = {name: (feature.dtype, feature.shape) for name, feature in spec.items()}
    assert kinds == {
        "f64": ("float32", (1,)),
        "i32": ("int64", (1, 2)),
        "u8": ("uint8", (2, 2)),
        "flag": ("bool", ()),
        "scalar": ("float32", ()),
        "list": ("float32", (2,)),
        "word": ("text", ()),
    }


def test_calls_out_of_order_say_which_comes_first(tmp_path: Path) -> None:
    with EpisodeLogger(tmp_path) as logger:
        for call in (lambda: logger.log_step({"x": 1}, {"a": 1}), logger.end_episode):
            with pytest.raises(ConflictError, match="start_episode"):
                call()
        logger.start_episode()
        with pytest.raises(ConflictError, match="end_episode"):
            logger.start_episode()
        logger.log_step({"x": 1}, {"a": 1}, done=True)
        with pytest.raises(ConflictError, match="terminal"):
            logger.log_step({"x": 1}, {"a": 1})


@pytest.mark.parametrize(
    ("obs", "members", "field"),
    [
        ({"x": float("nan")}, {}, "observation/x"),
        ({"x": np.array([np.inf])}, {}, "observation/x"),
        ({"x": "\ud800"}, {}, "observation/x"),
        ({"x": 1}, {"rewrad": 1}, "rewrad"),
        ({"x": 1}, {"reward": float("inf")}, "reward"),
        ({"x": 1}, {"control_role": "cat"}, "control_role"),
    ],
)
def test_a_wrong_step_is_named_and_leaves_no_trace(
    tmp_path: Path, obs: dict[str, Any], members: dict[str, Any], field: str | None
) -> None:
    with EpisodeLogger(tmp_path) as logger:
        path = tmp_path / f"{logger.start_episode()}.jsonl"
        before = path.read_bytes()
        with pytest.raises(InvalidError) as raised:
            logger.log_step(obs, {"a": 1}, **members)
        assert raised.value.field == field
        assert path.read_bytes() == before


def test_leaving_the_block_ends_a_running_episode(tmp_path: Path) -> None:
    with EpisodeLogger(tmp_path) as logger:
        path = tmp_path / f"{logger.start_episode()}.jsonl"
        logger.log_step({"x": 1}, {"a": 1})
    assert read_episode(path).end == "truncated"


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_a_log_that_has_its_end_gets_no_second_one(tmp_path: Path, form: Any) -> None:
    """A power cut may leave zeros behind the last line; cutting them leaves a whole log."""
    with EpisodeLogger(tmp_path) as logger:
        logger.start_episode()
        logger.log_step({"x": 1}, {"a": 1}, done=True)
        path = logger.end_episode()
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(100))
    os.utime(path, (1, 1))
    with EpisodeLogger(tmp_path, format=form):
        EpisodeFile.open(path).close()  # nobody holds it
    assert path.read_bytes() == whole
    assert read_episode(path).end == "terminated"


def test_a_log_that_outlived_its_document_is_removed(tmp_path: Path) -> None:
    """A crash between publishing the document and removing the log leaves both."""
    with EpisodeLogger(tmp_path) as logger:
        for name in ("both", "alone", "other"):
            logger.start_episode(episode_id=name)
            logger.log_step({"x": 1}, {"a": 1})
            logger.end_episode()
    log = tmp_path / "both.jsonl"
    before = log.read_bytes()
    assert publish_document(log) == tmp_path / "both.json"
    log.write_bytes(before)
    (tmp_path / "other.json").write_text("{}")
    assert [source.file for source in take_inventory(tmp_path).sources] == [
        "alone.jsonl",
        "both.json",
        "other.json",
        "other.jsonl",
    ]
    with EpisodeLogger(tmp_path, format="json"):
        pass
    assert not log.exists()
    assert (tmp_path / "alone.jsonl").exists()
    assert (tmp_path / "other.jsonl").exists(), "a file that only has its name is not its document"


@pytest.mark.parametrize("arguments", [{"format": "csv"}, {"durability": "never"}, {"sync_intervall_s": 1}])
def test_wrong_settings_are_refused(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        EpisodeLogger(tmp_path, **arguments)


def test_a_time_of_numpy_is_taken_and_a_fraction_refused(tmp_path: Path) -> None:
    with EpisodeLogger(tmp_path) as logger:
        logger.start_episode()
        logger.log_step({"s": 1.0}, {"c": 1.0}, timestamp_ns=np.int64(7))
        with pytest.raises(InvalidError, match="timestamp_ns"):
            logger.log_step({"s": 1.0}, {"c": 1.0}, timestamp_ns=1.5)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"obs": None}, "observation"),
        ({"obs": [1.0]}, "observation"),
        ({"reward": None}, "reward"),
        ({"reward": "x"}, "reward"),
        ({"reward": 10**400}, "reward"),
        ({"step_index": "3"}, "step_index"),
        ({"timestamp_ns": 1.5}, "timestamp_ns"),
        ({"step_metadata": 3}, "step_metadata"),
    ],
)
def test_a_member_of_the_wrong_type_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    with EpisodeLogger(tmp_path) as logger:
        logger.start_episode()
        good: dict[str, Any] = {"obs": {"state": [1.0]}, "action": {"command": [0.5]}}
        with pytest.raises(InvalidError) as refused:
            logger.log_step(**{**good, **changes})
        assert refused.value.field == field
        assert logger.log_step(**good, reward=np.float32(0.5), step_index=np.int64(0)).step_index == 0
