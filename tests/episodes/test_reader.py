"""Round trip: what a robot recorded is what a reader gets, value for value, dtype for dtype."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from brain_service.episodes.logger import EpisodeLogger
from brain_service.episodes.reader import Episode, episode_digest, read_episode, read_episodes
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError
from brain_service.spec import EpisodeSpec, Feature
from tests.episodes.bodies import JSON, as_json, open_store, step

ELEMENTS: dict[str, st.SearchStrategy[Any]] = {
    "float32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint8": st.integers(0, 255),
    "bool": st.booleans(),
}
PATHS = st.lists(
    st.sampled_from(["state", "arm/joints", "arm/grip", "cam/front/image", "größe", "a b"]),
    min_size=1,
    max_size=4,
    unique=True,
)


@st.composite
def features(draw: st.DrawFn) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """One to four features of any dtype and shape by path."""
    found: dict[str, tuple[Any, tuple[int, ...]]] = {}
    for path in sorted(draw(PATHS)):
        dtype = draw(st.sampled_from([*ELEMENTS, "text"]))
        shape = () if dtype == "text" else draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3))
        found[path] = (dtype, shape)
    return found


def values(feature: Feature) -> st.SearchStrategy[Any]:
    if feature.dtype == "text":
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    return hnp.arrays(np.dtype(feature.dtype), feature.shape, elements=ELEMENTS[feature.dtype])


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Nest by hand: `a/b` becomes `{"a": {"b": ...}}`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = value
    return tree


def assert_column(column: Any, expected: list[Any], feature: Feature) -> None:
    if feature.dtype == "text":
        assert column == expected
        return
    assert column.dtype == np.dtype(feature.dtype)
    assert column.shape == (len(expected), *feature.shape)
    assert column.tobytes() == np.stack(expected).astype(feature.dtype).tobytes()


@given(data=st.data(), form=st.sampled_from(["jsonl", "json"]), declared=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_any_episode_reads_back_exactly(tmp_path: Path, data: st.DataObject, form: Any, declared: bool) -> None:
    drawn = [data.draw(features()), data.draw(features())]
    # Not built in the strategy: the run-time type checker draws from the global random state, which it must not.
    spec = EpisodeSpec(*({path: Feature(*kind) for path, kind in part.items()} for part in drawn))
    step_values = st.tuples(
        st.fixed_dictionaries({path: values(f) for path, f in spec.observation.items()}),
        st.fixed_dictionaries({path: values(f) for path, f in spec.action.items()}),
        ELEMENTS["float32"],
    )
    steps = data.draw(st.lists(step_values, min_size=1, max_size=4))
    extra: dict[str, Any] = {"features": spec.to_json()} if declared else {}
    with EpisodeLogger(tmp_path, form, durability="episode", min_free_bytes=0) as logger:
        logger.start_episode(operator="Ann", **extra)
        for number, (observation, action, reward) in enumerate(steps):
            logger.log_step(
                nested(observation), nested(action), reward, timestamp_ns=number, executed_action=action
            )
        path = logger.end_episode("truncated", nested(steps[0][0]))
    (found,) = read_episodes(path)
    assert found.spec == spec
    for feature_path, feature in spec.observation.items():
        assert_column(found.observation[feature_path], [o[feature_path] for o, _, _ in steps], feature)
        assert found.final_observation is not None
        assert_column(
            [found.final_observation[feature_path]]
            if feature.dtype == "text"
            else np.stack([found.final_observation[feature_path]]),
            [steps[0][0][feature_path]],
            feature,
        )
    for feature_path, feature in spec.action.items():
        assert found.executed_action is not None
        assert_column(found.action[feature_path], [a[feature_path] for _, a, _ in steps], feature)
        assert_column(found.executed_action[feature_path], [a[feature_path] for _, a, _ in steps], feature)
    assert found.reward.tobytes() == np.array([reward for _, _, reward in steps], np.float32).tobytes()
    assert found.timestamp_ns.tolist() == list(range(len(steps)))
    assert (found.end, found.metadata["operator"], len(found)) == ("truncated", "Ann", len(steps))


def recorded(root: Path, count: int, end: str | None, **changes: Any) -> Path:
    with open_store(root) as store:
        episode = store.create({"episode_id": "e", "control_role": "policy"}).episode_id
        for index in range(count):
            store.append_json(episode, as_json(step(index, **(changes if index == 1 else {}))), JSON)
        if end is not None:
            store.end(episode, end)
    return root / "e.jsonl"


def read(path: Path) -> Episode:
    (found,) = read_episodes(path)
    return found


def test_how_it_ended_marks_the_last_step(tmp_path: Path) -> None:
    for end, last in (("terminated", True), ("truncated", False), (None, False)):
        root = tmp_path / str(end)
        found = read(recorded(root, 3, end))
        assert (found.end, found.is_terminal.tolist()) == (end, [False, False, last])
        assert found.episode_id == "e"


def test_rare_members_fill_up_from_the_common_ones(tmp_path: Path) -> None:
    changes = {"executed_action": {"command": [7, 8]}, "control_role": "intervention"}
    found = read(recorded(tmp_path, 3, "truncated", **changes))
    assert found.control_role == ["policy", "intervention", "policy"]
    assert found.executed_action is not None
    expected = np.array([[0, 1e-7], [7, 8], [0.02, 1e-7]], np.float32)
    np.testing.assert_array_equal(np.asarray(found.executed_action["command"]), expected)
    assert found.final_observation is None


def test_without_executed_actions_there_are_none(tmp_path: Path) -> None:
    assert read(recorded(tmp_path, 2, "truncated")).executed_action is None


def test_a_growing_log_reads_up_to_its_last_whole_line(tmp_path: Path) -> None:
    with EpisodeLogger(tmp_path, min_free_bytes=0) as logger:
        path = tmp_path / f"{logger.start_episode()}.jsonl"
        for count in range(1, 4):
            logger.log_step({"x": count}, {"a": 1})
            assert len(read_episode(path)) == count
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    assert (len(read_episode(path)), read_episode(path).end) == (3, None)


def test_errors_name_file_and_line(tmp_path: Path) -> None:
    path = recorded(tmp_path, 3, "truncated")
    path.write_bytes(path.read_bytes().replace(b'"step_index":1', b'"step_index":7'))
    with pytest.raises(CorruptDataError, match=r"e\.jsonl:3: checksum"):
        read_episode(path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(CorruptDataError, match="empty"):
        read_episode(tmp_path / "empty.jsonl")
    with pytest.raises(NotFoundError, match="nothing"):
        read_episode(tmp_path / "nothing.jsonl")
    with pytest.raises(NotFoundError):
        list(read_episodes(tmp_path / "nothing.json"))


@pytest.mark.parametrize("end", ["truncated", None])
def test_an_episode_without_steps_says_so(tmp_path: Path, end: str | None) -> None:
    with pytest.raises(InvalidError, match="holds no steps"):
        read_episode(recorded(tmp_path, 0, end))


def test_a_digest_follows_the_content(tmp_path: Path) -> None:
    path = recorded(tmp_path, 2, None)
    before = episode_digest(path)
    assert before == episode_digest(path)
    assert len(before) == 64
    with path.open("ab") as file:
        file.write(b"x")
    assert episode_digest(path) != before
    with pytest.raises(NotFoundError):
        episode_digest(tmp_path / "nothing")
