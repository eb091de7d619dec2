"""The store as a whole: ends, lists, recovery on start, other writers, many threads, and the event loop."""

import asyncio
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

from brain_service.episodes.logger import EpisodeLogger
from brain_service.episodes.reader import read_episode
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import (
    BrainError,
    ConflictError,
    InvalidError,
    NotFoundError,
    TooManyError,
    UnavailableError,
)
from brain_service.settings import CaptureSettings
from tests.episodes.bodies import JSON, SPEC, as_json, begin, open_store, step


def wait_until(condition: Any) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up, "nothing happened within 20 s"
        time.sleep(0.01)


def test_an_end_is_durable_and_can_be_repeated(store: EpisodeStore) -> None:
    episode = begin(store, 3, durability="episode")
    assert store.get(episode)["durable_through"] == -1
    for reason in ("terminated", "terminated", None):
        ended = store.end(episode, reason)
        assert (ended.steps, ended.durable_through, ended.reason) == (3, 2, "terminated")
    with pytest.raises(ConflictError, match="ended as terminated"):
        store.end(episode, "truncated")
    with pytest.raises(ConflictError, match="ended as terminated"):
        store.append_json(episode, as_json(step(3)), JSON)
    with pytest.raises(InvalidError, match="neither"):
        store.end(episode, "done")


def test_an_end_with_another_final_observation_is_no_repeat(store: EpisodeStore) -> None:
    last = {"arm": {"joints": [0.1, 2, 3]}, "grip": True}
    with_one, without = begin(store, 1), begin(store, 1)
    store.end(with_one, "truncated", last)
    assert store.end(with_one, None, last) == store.end(with_one, "truncated")
    store.end(without, "truncated")
    for episode, other in ((with_one, last | {"grip": False}), (without, last)):
        with pytest.raises(ConflictError, match="another final observation") as raised:
            store.end(episode, "truncated", other)
        assert raised.value.field == "final_observation"
    with pytest.raises(InvalidError):
        store.end(with_one, "truncated", {"grip": True})


def test_an_end_without_a_reason_follows_the_last_step(store: EpisodeStore) -> None:
    cut, done = begin(store, 2), begin(store, 1)
    store.append_json(done, as_json(step(1, is_terminal=True)), JSON)
    with pytest.raises(ConflictError, match="terminated"):
        store.end(done, "truncated")
    assert [store.end(cut).reason, store.end(done).reason] == ["truncated", "terminated"]
    assert store.end(begin(store)).steps == 0


def test_a_final_observation_must_fit(store: EpisodeStore) -> None:
    episode = begin(store, 1)
    with pytest.raises(InvalidError) as raised:
        store.end(episode, "truncated", {"grip": True})
    assert raised.value.field == "final_observation/arm/joints"
    store.end(episode, "truncated", {"arm": {"joints": [1, 2, 3]}, "grip": True})
    with pytest.raises(InvalidError, match="without steps"):
        store.end(begin(store), "truncated", {"x": 1})


@pytest.mark.parametrize("features", [None, SPEC])
def test_open_and_closed_episodes_have_the_same_summary(store: EpisodeStore, features: Any) -> None:
    episode = begin(store, 2, features=features, metadata={"operator": "Ann"})
    wait_until(lambda: store.get(episode)["durable_through"] == 1)
    before = store.get(episode)
    store.end(episode, "truncated")
    after = store.get(episode)
    assert (before.pop("state"), after.pop("state")) == ("open", "truncated")
    assert before.pop("ended_ns") is None
    assert after["created_ns"] < after.pop("ended_ns") <= time.time_ns()
    assert before.pop("size_bytes") < after.pop("size_bytes")
    assert before == after
    assert after["metadata"]["operator"] == "Ann"
    assert after["features"]["observation"] == SPEC["observation"] | {"grip": {"dtype": "bool", "shape": []}}


def test_a_summary_finds_an_end_behind_a_huge_final_observation(store: EpisodeStore) -> None:
    episode = store.create({}).episode_id
    wide = {"image": [0.123456] * 20_000}
    store.append_json(episode, as_json(step(0, observation=wide)), JSON)
    store.end(episode, "truncated", wide)
    assert store.get(episode)["state"] == "truncated"


def test_pages_show_every_episode_once_newest_first(store: EpisodeStore) -> None:
    made = [begin(store, episode_id=f"2026010{n}T000000-aaaaaa") for n in range(1, 6)]
    pages: list[list[str]] = []
    cursor = None
    while True:
        items, cursor = store.list(2, cursor)
        pages.append([item["episode_id"] for item in items])
        if cursor is None:
            break
    assert [name for page in pages for name in page] == made[::-1]
    assert [len(page) for page in pages] == [2, 2, 1]


def test_only_an_ended_episode_can_be_deleted(store: EpisodeStore, tmp_path: Path) -> None:
    episode = begin(store, 1)
    with pytest.raises(ConflictError, match="is open"):
        store.delete(episode)
    store.end(episode)
    (tmp_path / f"{episode}.jsonl.corrupt-1").write_bytes(b"piece")
    store.delete(episode)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFoundError):
        store.get(episode)


def test_ids_are_unique_and_open_episodes_bounded(tmp_path: Path) -> None:
    with open_store(tmp_path, max_open_episodes=2) as store:
        first = begin(store, episode_id="one")
        with pytest.raises(ConflictError, match="exists"):
            store.create({"episode_id": "one"})
        begin(store)
        with pytest.raises(TooManyError, match="max_open_episodes = 2"):
            store.create({})
        store.end(first)
        begin(store)


def test_an_open_episode_goes_on_after_a_restart(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        empty, episode = begin(store), begin(store, 3)
    with open_store(tmp_path) as store:
        assert (store.get(episode)["state"], store.get(episode)["durable_through"]) == ("open", 2)
        assert store.append_json(episode, as_json(step(2)), JSON).step_index == 2
        with pytest.raises(InvalidError):
            store.append_json(episode, as_json(step(3, action={"x": 1})), JSON)
        assert store.append_json(episode, as_json(step(3, is_terminal=True)), JSON).step_index == 3
        assert store.append_json(empty, as_json(step(0)), JSON).step_index == 0
    with open_store(tmp_path) as store:
        with pytest.raises(ConflictError, match="terminal"):
            store.append_json(episode, as_json(step(4)), JSON)
        assert store.end(episode).reason == "terminated"


def test_an_idle_recovered_episode_closes_and_a_live_one_does_not(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        episode = begin(store, 3)
    with open_store(tmp_path, recover_idle_s=0.05) as store:
        fresh = begin(store, 1)
        wait_until(lambda: store.get(episode)["state"] == "recovered")
        time.sleep(0.2)
        assert store.get(fresh)["state"] == "open"
        with pytest.raises(ConflictError, match="ended as recovered"):
            store.append_json(episode, as_json(step(3)), JSON)


def test_robots_that_begin_at_once_do_not_pass_the_limit_together(tmp_path: Path) -> None:
    with open_store(tmp_path, max_open_episodes=3) as store, ThreadPoolExecutor(16) as pool:
        begun = [pool.submit(store.create, {"episode_id": f"robot-{i}"}) for i in range(16)]
        refused = [it.exception() for it in begun if it.exception() is not None]
        assert len(refused) == 13
        assert all(isinstance(error, TooManyError) for error in refused)
        assert store.status()["open_episodes"] == 3
        store.end(next(it.result().episode_id for it in begun if it.exception() is None))
        store.create({"episode_id": "one-more"})


def test_an_abandoned_episode_gives_its_place_to_a_new_one(tmp_path: Path) -> None:
    """Controllers that crashed must not keep robots out for good; one that paused keeps its place."""
    with open_store(tmp_path, max_open_episodes=3, recover_idle_s=60) as store:
        for name in ("oldest", "old", "live"):
            begin(store, 1, episode_id=name)
        with pytest.raises(TooManyError, match="3 episodes are open"):
            begin(store)
        for writer in store._open.writers():
            writer.last_used_s -= 100
        store._open.end_idle()
        assert store.status()["open_episodes"] == 3, "nobody needs their places"
        store.append_json("live", as_json(step(1)), JSON)
        begin(store, 1, episode_id="next")
        states = {item["episode_id"]: item["state"] for item in store.list()[0]}
        assert states == {"oldest": "recovered", "old": "open", "live": "open", "next": "open"}
        assert store.append_json("old", as_json(step(1)), JSON).step_index == 1
        with pytest.raises(TooManyError):
            begin(store)
    assert read_episode(tmp_path / "oldest.jsonl").end == "recovered"


def test_a_start_flushes_the_names_of_ended_logs_once_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path) as store:
        for _ in range(20):
            store.end(begin(store, 1))
    folders: list[int] = []
    fsync = os.fsync

    def count(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            folders.append(fd)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", count)
    with open_store(tmp_path):
        assert 1 <= len(folders) < 4


def test_damage_is_reported_and_the_robot_goes_on(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        torn, flipped, header = begin(store, 3), begin(store, 4), begin(store, 1)
    for episode, old, new in (
        (flipped, b'"step_index":2', b'"step_index":9'),
        (header, b'"trainer"', b'"tranier"'),
    ):
        path = tmp_path / f"{episode}.jsonl"
        path.write_bytes(path.read_bytes().replace(old, new))
    path = tmp_path / f"{torn}.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    unborn, being_born = tmp_path / ".x.jsonl.0123.tmp", tmp_path / ".y.jsonl.4567.tmp"
    for path in (unborn, being_born):
        path.write_bytes(b"half a header")
    os.utime(unborn, (0, 0))
    with open_store(tmp_path) as store:
        reports = {report["episode_id"]: report for report in store.status()["recoveries"]}
        assert (reports[torn]["steps"], reports[torn]["lines_lost"], reports[torn]["moved_to"]) == (2, 1, None)
        assert (reports[flipped]["steps"], reports[flipped]["lines_lost"]) == (2, 2)
        assert (tmp_path / reports[flipped]["moved_to"]).read_bytes().count(b"\n") == 2
        assert reports[header]["moved_to"] == f"quarantine/{header}.jsonl"
        assert "checksum" in reports[header]["reason"]
        for episode in (torn, flipped):
            assert store.append_json(episode, as_json(step(2)), JSON).step_index == 2
        with pytest.raises(NotFoundError):
            store.get(header)
    assert (unborn.exists(), being_born.exists()) == (False, True)
    assert "checksum" in (tmp_path / "quarantine" / f"{header}.jsonl.reason.txt").read_text()


def test_creating_while_a_store_starts_never_fails(tmp_path: Path) -> None:
    """The start-up sweep must not take a file that is just being created for one that a crash left."""
    for _ in range(20):
        store = EpisodeStore(tmp_path, CaptureSettings(min_free_bytes=0))
        store.start()
        episode = store.create({}).episode_id
        assert store.append_json(episode, as_json(step(0)), JSON).step_index == 0
        store.end(episode)
        store.close()


def test_a_file_of_the_seed_is_left_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "seed.jsonl"
    path.write_text('{"observation": {"command": [1]}, "action": {"command": [1]}, "reward": 0.0}\n')
    with open_store(tmp_path) as store:
        assert store.list() == ([], None)
        with pytest.raises(NotFoundError, match="no capture log"):
            store.get("seed")
        with pytest.raises(NotFoundError, match="no capture log"):
            store.append_json("seed", as_json(step(0)), JSON)
    assert path.exists()


def test_an_episode_of_another_writer_is_readable_and_not_ours_to_write(tmp_path: Path) -> None:
    logger = EpisodeLogger(tmp_path)
    episode = logger.start_episode()
    logger.log_step({"x": 1}, {"a": 1})
    with open_store(tmp_path) as store:
        assert (store.get(episode)["state"], store.get(episode)["steps"]) == ("open", 1)
        assert len(store.steps(episode)) == 1
        with pytest.raises(ConflictError, match="another process"):
            store.append_json(episode, as_json(step(1)), JSON)
        with pytest.raises(ConflictError, match="another process"):
            store.end(episode)
        with pytest.raises(ConflictError, match="is open"):
            store.delete(episode)
        logger.close()
        assert store.get(episode)["state"] == "truncated"


def test_many_threads_on_many_episodes_lose_and_mix_nothing(tmp_path: Path) -> None:
    with open_store(tmp_path, durability="step") as store:
        episodes = [begin(store) for _ in range(6)]

        def drive(episode: str) -> None:
            for index in range(40):
                done = store.append_json(episode, as_json(step(index)), JSON)
                assert done.durable_through >= index

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(drive, episodes))
        for episode in episodes:
            indices = [record["step_metadata"]["step_index"] for record in store.steps(episode, 0, 100)]
            assert indices == list(range(40))
            assert {record["episode_id"] for record in store.steps(episode, 0, 100)} == {episode}


def test_threads_that_race_for_one_index_store_one_of_them(store: EpisodeStore) -> None:
    episode = begin(store)
    barrier = threading.Barrier(8)

    def post(number: int) -> bool:
        barrier.wait()
        try:
            store.append_json(episode, as_json(step(0, reward=number)), JSON)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(post, range(8))) == 1
    assert store.get(episode)["steps"] == 1


def test_from_an_event_loop_no_call_blocks_it(tmp_path: Path) -> None:
    async def drive(store: EpisodeStore) -> dict[str, Any]:
        with blockbuster_ctx():
            episode = (await store.run(store.create, {"durability": "step"})).episode_id
            for index in range(3):
                await store.run(store.append_json, episode, as_json(step(index)), JSON)
            with pytest.raises(BrainError):
                await store.run(store.append_json, episode, as_json(step(7)), JSON)
            await store.run(store.end, episode, "truncated")
            await store.run(store.list)
            return await store.run(store.get, episode)

    with open_store(tmp_path) as store:
        assert asyncio.run(drive(store))["steps"] == 3


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        pass
    with pytest.raises(UnavailableError, match="shutting down"):
        asyncio.run(store.run(store.list))
    EpisodeStore(tmp_path, CaptureSettings()).close()


def test_the_status_follows_the_steps(store: EpisodeStore) -> None:
    episode = begin(store, 5, durability="episode")
    status = store.status()
    assert (status["open_episodes"], status["unsynced_steps"], status["recovering"]) == (1, 5, False)
    assert status["unsynced_s"] > 0
    store.end(episode)
    status = store.status()
    assert (status["open_episodes"], status["unsynced_steps"], status["unsynced_s"]) == (0, 0, 0.0)
    assert status["free_bytes"] > 0
