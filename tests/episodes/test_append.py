"""Appending: order, retries, gaps, batches, and what is refused without a trace."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.episodes.schema import StepIn
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import ConflictError, InvalidError, NotFoundError, TooLargeError
from tests.episodes.bodies import JSON, NDJSON, SPEC, as_json, begin, open_store, step


def log_of(tmp_path: Path, episode: str) -> bytes:
    return (tmp_path / f"{episode}.jsonl").read_bytes()


def test_steps_come_back_as_they_were_sent(store: EpisodeStore) -> None:
    episode = begin(store, 5)
    records = store.steps(episode, 1, 3)
    assert [record["step_metadata"]["step_index"] for record in records] == [1, 2, 3]
    assert records[1]["observation"] == {"arm": {"joints": [0.2, 1.0, -2.5]}, "grip": True}
    assert records[1]["step_metadata"]["timestamp_ns"] == 1_700_000_000_000_000_002
    assert records[1]["step_metadata"]["control_role"] == "expert"
    assert store.steps(episode, 4, 100)[0]["reward"] == 0.4
    assert store.steps(episode, 5, 100) == []


def test_an_omitted_index_is_the_next_one(store: EpisodeStore) -> None:
    episode = begin(store)
    assert store.append_json(episode, as_json(step()), JSON).step_index == 0
    assert store.append_json(episode, as_json([step(), step()]), JSON).step_index == 2
    assert store.append(episode, [StepIn(**step()), StepIn(**step())]).step_index == 4


def test_the_seeds_nested_metadata_counts(store: EpisodeStore) -> None:
    episode = begin(store, control_role="policy")
    body = step() | {"step_metadata": {"step_index": 0, "timestamp": 1.5, "control_role": "human_teleop"}}
    del body["timestamp_ns"]
    store.append_json(episode, as_json(body), JSON)
    metadata = store.steps(episode)[0]["step_metadata"]
    assert metadata == {"timestamp_ns": 1_500_000_000, "step_index": 0, "control_role": "expert"}
    store.append_json(episode, as_json(step()), JSON)
    assert store.steps(episode)[1]["step_metadata"]["control_role"] == "policy"


@pytest.mark.parametrize("with_time", [True, False])
def test_a_retry_gets_the_same_answer_and_writes_nothing(
    store: EpisodeStore, tmp_path: Path, with_time: bool
) -> None:
    episode = begin(store)
    bodies = [step(i, executed_action={"command": [0.3, 0.1]}, policy={"model": "m"}) for i in range(3)]
    for body in bodies:
        if not with_time:
            del body["timestamp_ns"]
        store.append_json(episode, as_json(body), JSON)
    before = log_of(tmp_path, episode)
    for index in (0, 2, 1):
        assert store.append_json(episode, as_json(bodies[index]), JSON).step_index == index
    assert log_of(tmp_path, episode) == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"reward": 0.75}, "reward"),
        ({"is_terminal": True}, "is_terminal"),
        ({"timestamp_ns": 5}, "step_metadata"),
        ({"control_role": "policy"}, "step_metadata"),
        ({"action": {"command": [0.01, 2e-7]}}, "action"),
        ({"executed_action": {"command": [0, 0]}}, "executed_action"),
    ],
)
def test_another_body_under_a_stored_index_conflicts(
    store: EpisodeStore, change: dict[str, Any], field: str
) -> None:
    episode = begin(store, 3)
    with pytest.raises(ConflictError) as raised:
        store.append_json(episode, as_json(step(1, **change)), JSON)
    assert raised.value.field == field
    assert raised.value.members == {"next_step_index": 3}


def test_a_retry_is_held_against_the_sign_of_zero_and_the_kind_of_a_number(store: EpisodeStore) -> None:
    """Python calls 0.0 and -0.0 equal, and 1 and true."""
    episode = begin(store)
    sent = step(0, reward=0.0, policy={"greedy": True})
    store.append_json(episode, as_json(sent), JSON)
    store.append_json(episode, as_json(sent), JSON)
    for change in ({"reward": -0.0}, {"policy": {"greedy": 1}}):
        with pytest.raises(ConflictError, match="stored with another"):
            store.append_json(episode, as_json(sent | change), JSON)


def test_two_places_for_one_index_must_agree(store: EpisodeStore) -> None:
    episode = begin(store)
    store.append_json(episode, as_json(step(0, step_metadata={"step_index": 0})), JSON)
    with pytest.raises(InvalidError, match="contradict"):
        store.append_json(episode, as_json(step(1, step_metadata={"step_index": 5})), JSON)


@pytest.mark.parametrize(("body", "expected"), [(step(4), 3), ([step(4)], 3), ([step(3), step(5)], 3)])
def test_a_gap_conflicts_and_names_the_next_index(store: EpisodeStore, body: Any, expected: int) -> None:
    episode = begin(store, 3)
    with pytest.raises(ConflictError, match="gap") as raised:
        store.append_json(episode, as_json(body), JSON)
    assert raised.value.members == {"next_step_index": expected}
    assert store.get(episode)["steps"] == 3


def test_a_negative_index_is_no_place(store: EpisodeStore) -> None:
    episode = begin(store, 1)
    with pytest.raises(ConflictError, match="-1"):
        store.append_json(episode, as_json(step(-1)), JSON)


def test_a_batch_skips_what_is_stored(store: EpisodeStore, tmp_path: Path) -> None:
    episode = begin(store, 3)
    done = store.append_json(episode, b"\n".join(as_json(step(i)) for i in range(1, 6)), NDJSON)
    assert (done.step_index, done.accepted) == (5, 5)
    assert log_of(tmp_path, episode).count(b'"type":"step"') == 6


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (step(5, reward=1e39), "steps/2/reward"),
        (step(5, observation={"arm": {"joints": [1, 2]}, "grip": True}), "steps/2/observation/arm/joints"),
        (step(5, observation={"arm": {"joints": [1, 2, 3]}, "grip": 1}), "steps/2/observation/grip"),
        (step(5, observation={"grip": True}), "steps/2/observation/arm/joints"),
        (step(5, action={"comand": [1, 2]}), "steps/2/action/comand"),
        (step(5, executed_action={"command": [1]}), "steps/2/executed_action/command"),
        (step(5, control_role="nobody"), "steps/2/control_role"),
        (step(5, timestamp_ns=2**63), "steps/2/timestamp_ns"),
        (step(5, episode_id="another"), "steps/2/episode_id"),
    ],
)
def test_one_wrong_step_refuses_its_whole_batch(
    store: EpisodeStore, tmp_path: Path, wrong: dict[str, Any], field: str
) -> None:
    episode = begin(store, 3)
    before = log_of(tmp_path, episode)
    with pytest.raises(InvalidError) as raised:
        store.append_json(episode, as_json([step(3), step(4), wrong]), JSON)
    assert raised.value.field == field
    assert log_of(tmp_path, episode) == before
    assert store.append_json(episode, as_json(step(3)), JSON).step_index == 3


def test_a_first_step_that_is_refused_fixes_no_spec(store: EpisodeStore) -> None:
    episode = begin(store)
    with pytest.raises(InvalidError):
        store.append_json(episode, as_json([step(0), step(1, action={"x": 1})]), JSON)
    assert store.append_json(episode, as_json(step(0, action={"x": 1})), JSON).step_index == 0


def test_a_declared_spec_binds_the_first_step(store: EpisodeStore) -> None:
    episode = begin(store, features=SPEC)
    with pytest.raises(InvalidError) as raised:
        store.append_json(episode, as_json(step(0, action={"command": [1, 2, 3]})), JSON)
    assert raised.value.field == "action/command"


@pytest.mark.parametrize(
    "observation",
    [{"a": 1, "a/b": 2}, {}, {"a": {}}, {"a": []}, {"a": None}, {"a": [[1], [1, 2]]}, {"a": [1, True]}, {"": 1}],
)
def test_an_observation_that_is_no_map_of_arrays_is_refused(
    store: EpisodeStore, observation: dict[str, Any]
) -> None:
    episode = begin(store)
    with pytest.raises(InvalidError) as raised:
        store.append_json(episode, as_json(step(0, observation=observation)), JSON)
    assert raised.value.field is not None
    assert raised.value.field.startswith("observation")


def test_deep_nesting_is_refused(store: EpisodeStore) -> None:
    episode = begin(store)
    deep = b'{"a":' * 900 + b"1" + b"}" * 900
    with pytest.raises(InvalidError):
        store.append_json(episode, b'{"observation":' + deep + b',"action":{"a":1}}', JSON)


def test_nothing_follows_a_terminal_step(store: EpisodeStore) -> None:
    episode = begin(store, 1)
    store.append_json(episode, as_json(step(1, is_terminal=True)), JSON)
    with pytest.raises(ConflictError, match="/end"):
        store.append_json(episode, as_json(step(2)), JSON)
    assert store.append_json(episode, as_json(step(1, is_terminal=True)), JSON).step_index == 1


def test_a_terminal_step_inside_a_batch_is_refused(store: EpisodeStore) -> None:
    episode = begin(store)
    with pytest.raises(ConflictError) as raised:
        store.append_json(episode, as_json([step(0, is_terminal=True), step(1)]), JSON)
    assert raised.value.field == "steps/1/step_index"
    assert store.get(episode)["steps"] == 0


def test_sizes_are_bounded(tmp_path: Path) -> None:
    with open_store(tmp_path, max_body_bytes=2000, max_batch_steps=2, max_step_bytes=600) as store:
        episode = store.create({}).episode_id
        with pytest.raises(TooLargeError, match="limit is 2000"):
            store.append_json(episode, b" " * 2001, JSON)
        with pytest.raises(TooLargeError, match="limit is 2;"):
            store.append_json(episode, as_json([step(0), step(1), step(2)]), JSON)
        with pytest.raises(TooLargeError, match="limit is 600"):
            store.append_json(episode, as_json(step(0, observation={"text": "x" * 600})), JSON)
        with pytest.raises(TooLargeError, match="limit is 600"):
            store.create({"metadata": {"note": "x" * 600}})
        with pytest.raises(InvalidError, match="at least one"):
            store.append(episode, [])


@pytest.mark.parametrize("episode", ["20260101T000000-abcdef", "../outside", "", "a/b", "x" * 300])
def test_an_unknown_episode_is_not_found(store: EpisodeStore, episode: str) -> None:
    for call in (store.get, store.steps, store.end, store.delete):
        with pytest.raises(NotFoundError):
            call(episode)
    with pytest.raises(NotFoundError):
        store.append_json(episode, as_json(step(0)), JSON)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 5)), max_size=12))
def test_any_mix_of_retries_and_batches_stores_each_step_once(requests: list[tuple[int, int]]) -> None:
    """Whatever a controller resends, the log is 0, 1, 2, ... up to the furthest step that left no gap."""
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder)) as store:
        episode = store.create({"durability": "episode"}).episode_id
        stored = 0
        for first, count in requests:
            body = as_json([step(i) for i in range(first, first + count)])
            if first <= stored:
                stored = max(stored, first + count)
                assert store.append_json(episode, body, JSON).step_index == first + count - 1
            else:
                with pytest.raises(ConflictError):
                    store.append_json(episode, body, JSON)
        indices = [record["step_metadata"]["step_index"] for record in store.steps(episode, 0, 100)]
        assert indices == list(range(stored))
