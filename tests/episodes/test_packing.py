"""The short way of log lines into columns gives what the general reader gives, or gives up."""

import json
import tempfile
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.episodes.episode import Column, Episode
from brain_service.episodes.log_format import ROUNDS_TWICE, encode_line
from brain_service.episodes.packing import StepPacker
from brain_service.episodes.reader import read_episode
from brain_service.errors import BrainError
from brain_service.spec import EpisodeSpec, Feature
from brain_service.trees import unflatten
from tests.datasets.logs import end, header, step
from tests.datasets.samples import VECTOR_SPEC, Recipe, recipes


def _same(found: Column, expected: Column) -> None:
    if isinstance(found, list) or isinstance(expected, list):
        assert list(found) == list(expected)
    else:
        assert (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


def _equal(found: Episode, expected: Episode) -> None:
    assert (found.spec, found.end, found.control_role) == (expected.spec, expected.end, expected.control_role)
    for part in ("observation", "action", "executed_action"):
        mine, others = getattr(found, part), getattr(expected, part)
        assert (mine is None) == (others is None)
        for path in mine or {}:
            _same(mine[path], others[path])
    for name in ("reward", "is_terminal", "timestamp_ns"):
        _same(getattr(found, name), getattr(expected, name))


def _read_both(path: Path) -> tuple[Episode, Episode]:
    """Read with the short way and without it."""
    short = read_episode(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepPacker, "take", lambda *_: False)
        return short, read_episode(path)


def _lines(episode: Episode) -> list[bytes]:
    records: list[dict[str, Any]] = [header("e") | {"features": episode.spec.to_json()}]
    for n in range(len(episode)):
        parts = {
            name: unflatten({path: column[n] for path, column in getattr(episode, name).items()})
            for name in ("observation", "action")
        }
        records.append(
            step(n, np.random.default_rng(n))
            | parts
            | {"reward": episode.reward[n], "is_terminal": bool(episode.is_terminal[n])}
        )
    return [encode_line(record) for record in [*records, end(episode.end or "truncated")]]


@given(recipes.filter(lambda recipe: all(dtype != "image" for dtype, _ in recipe.observation.values())))
def test_any_episode_comes_out_the_same_and_by_the_short_way(recipe: Recipe) -> None:
    episode = recipe.build()
    lines = _lines(episode)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "e.jsonl"
        path.write_bytes(b"".join(lines))
        _equal(*_read_both(path))
    packer = StepPacker(EpisodeSpec.from_json(episode.spec.to_json()))
    assert packer.take([line[:-1] for line in lines[1:-1]])
    assert len(packer) == len(episode)


_numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**70), 2**70),
    st.sampled_from([float(ROUNDS_TWICE), 0.1, -0.0, 1e-45, 3.4028236e38, 2**53 + 1, 16777217, True, None, "1.5"]),
    st.lists(st.floats(-1, 1), max_size=2),
)


@given(
    st.lists(
        st.tuples(
            st.lists(_numbers, min_size=2, max_size=4),
            _numbers,
            st.sampled_from(["expert", "policy", 3, None]),
            st.sampled_from([1, 2**62, 1.5, "now", True]),
            st.sampled_from([{}, {"executed_action": {"command": [1.0, 2.0]}}, {"note": "true"}]),
            st.sampled_from([False, True, 0, 1]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_stands_in_a_line_both_ways_agree(steps: list[Any]) -> None:
    rng = np.random.default_rng(0)
    records = [header("e")]
    for n, (state, reward, role, time_ns, more, terminal) in enumerate(steps):
        record = step(n, rng) | {"reward": reward, "is_terminal": terminal} | more
        record["observation"] = {"state": state}
        record["step_metadata"] = {"timestamp_ns": time_ns, "step_index": n, "control_role": role}
        records.append(record)
    # Not `encode_line`: JSON knows integers that the log's encoder refuses.
    body = [
        _seal(b"{" + b",".join(orjson.dumps(name) + b":" + _json(value) for name, value in record.items()))
        for record in [*records, end()]
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "e.jsonl"
        path.write_bytes(b"".join(body))
        try:
            found, expected = _read_both(path)
        except BrainError as error:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(StepPacker, "take", lambda *_: False)
                with pytest.raises(type(error)) as caught:
                    read_episode(path)
            assert caught.value.detail == error.detail
            return
        _equal(found, expected)


@pytest.mark.parametrize(
    ("text", "is_short"),
    [
        ("reach [the] puck", True),
        ('a "quoted" word, a \\ and a\nline', True),
        ("schwer – \N{ROBOT FACE}", True),
        ("", True),
        ("x\udc00", False),
    ],
)
def test_any_text_stands_in_no_way(tmp_path: Path, text: str, is_short: bool) -> None:
    spec = EpisodeSpec({"note": Feature("text"), "state": Feature("float32", (2,))}, {"a": Feature("float32")})
    observation = {"note": text, "state": [0.5, 1]}
    policy = {"model": "m-1", "backend": "jax"}
    steps = [
        step(n, np.random.default_rng(0)) | {"observation": observation, "action": {"a": n}} for n in range(3)
    ]
    steps[1]["step_metadata"] |= {"policy": policy}
    # As other writers put it: JSON knows lone surrogates and has two ways to write what is no ASCII.
    lines = [_seal(_json(record)[:-1]) for record in steps]
    packer = StepPacker(spec)
    assert packer.take([line[:-1] for line in lines]) == is_short
    if is_short:
        found = packer.episode("e", {}, None, None)
        assert found.observation["note"] == [text] * 3
        assert np.asarray(found.action["a"]).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "text",
    [
        b'"grid":[[1.0,[2.0]],[3.0,4.0]],"state":[1.0,2.0]',
        b'"grid":[[1.0,2.0,3.0],[4.0]],"state":[1.0,2.0]',
        b'"grid":[[1.0,2.0],[3.0,4.0]],"state":[[1.0],[2.0]]',
        b'"grid":[[1.0,2.0],[3.0,4.0]],"state":[1.0,2.0],"state":[3.0,4.0]',
        b'"grid":[[1.0,2.0],[3.0,4.0]],"state":[1.0,2.0],"other":1.0',
        b'"grid":[[1.0,2.0],[3.0,4.0]],"state":[1.0]',
        b'"grid":[[1.0,2.0],[3.0,4.0]],"state":[1.0,2.0,]',
        b'"grid":[[1.0,2.0],[3.0,true]],"state":[1.0,2.0]',
        b'"grid":[[1.0,2.0],[3.0,"4"]],"state":[1.0,2.0]',
        b'"grid":[[1.0,2.0],[3.0,4.0]],[[1.0,2.0],[3.0,4.0]],"state":[1.0,2.0]',
    ],
)
def test_another_nesting_or_number_of_values_is_not_taken(text: bytes) -> None:
    observation = {"grid": Feature("float32", (2, 2)), "state": Feature("float32", (2,))}
    spec = EpisodeSpec(observation, VECTOR_SPEC.action)

    def line(index: int, members: bytes) -> bytes:
        record = step(index, np.random.default_rng(index), observation={"x": 0})
        return _seal(_json(record)[:-1].replace(b'"x":0', members))[:-1]

    good = b'"grid":[[1.0,2.0],[3.0,4.0]],"state":[1.0,2.0]'
    packer = StepPacker(spec)
    assert packer.take([line(0, good)])
    assert not packer.take([line(1, text)])
    assert not packer.take([line(1, good), line(2, text)])
    assert not StepPacker(spec).take([line(0, text)])
    assert packer.take([line(1, good)])
    assert len(packer) == 2


def _seal(text: bytes) -> bytes:
    """Return the text of an object without its last brace as a checksummed line."""
    return b'%b,"crc32c":"%08x"}\n' % (text, google_crc32c.value(text))


def _json(value: Any) -> bytes:
    def plain(node: Any) -> Any:
        return node.tolist() if isinstance(node, np.ndarray | np.generic) else str(node)

    return json.dumps(value, default=plain, separators=(",", ":")).encode()


def test_what_was_taken_before_a_line_that_is_not_stays_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [encode_line(step(n, rng))[:-1] for n in range(3)]
    packer = StepPacker(EpisodeSpec.from_json(header("e")["features"]))
    assert packer.take(lines[:1])
    assert not packer.take([lines[1], lines[2].replace(b"expert", b"exbert")])
    assert len(packer) == 1
    assert packer.take(lines[1:])
    assert packer.episode("e", {}, None, None).observation["state"].shape == (3, 3)  # type: ignore[union-attr]
