"""The way in from an event loop: order, refusals, two lanes, bounds, and answers that wait for the medium."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brain_service.episodes.answers import Appended, Ingested, Taken
from brain_service.episodes.ingest import Ingest
from brain_service.episodes.open_episodes import _Watcher
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import (
    BrainError,
    ConflictError,
    InvalidError,
    MalformedError,
    NotFoundError,
    TooLargeError,
    TooManyError,
    UnavailableError,
)
from tests.episodes.bodies import JSON, NDJSON, SPEC, as_json, begin, open_store, step


def drive(use: Callable[[], Awaitable[None]]) -> None:
    """Run on an event loop that must not be blocked."""

    async def guarded() -> None:
        with blockbuster_ctx():
            await use()

    asyncio.run(guarded())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread brings about."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing here could set an event
            await asyncio.sleep(0.005)


def indices(store: EpisodeStore, episode: str) -> list[int]:
    return [record["step_metadata"]["step_index"] for record in store.steps(episode, 0, 100_000)]


@contextlib.contextmanager
def busy(store: EpisodeStore, episode: str) -> Iterator[None]:
    """Hold an episode as a thread does that is at it."""
    writer = store._open.known(episode)
    assert writer is not None
    with writer._lock:
        yield


def test_bodies_are_taken_in_order_and_answered_by_the_last(store: EpisodeStore) -> None:
    episode = begin(store)

    async def use() -> None:
        found = await store.ingest(
            episode, [as_json(step(0)), as_json([step(1), step(2)]), as_json(step(3))], JSON
        )
        assert (found.consumed, found.error) == (3, None)
        assert found.appended is not None
        assert (found.appended.step_index, found.appended.accepted) == (3, 1)
        lines = b"\n".join(as_json(step(i)) for i in (4, 5))
        found = await store.ingest(episode, [lines], NDJSON)
        assert found.appended is not None
        assert found.appended.step_index == 5
        packed = msgspec.msgpack.encode([step(6), step(7)])
        assert (await store.ingest(episode, [packed], "application/msgpack")).consumed == 1
        assert (await store.ingest(episode, [], JSON)) == Ingested(None, 0, None)

    drive(use)
    assert indices(store, episode) == list(range(8))


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (as_json(step(2, reward="much")), InvalidError),
        (as_json(step(5)), ConflictError),
        (as_json(step(0, reward=9)), ConflictError),
        (b"{", MalformedError),
        (b"[" + as_json(step(2)) + b",", MalformedError),
        (b"[]", InvalidError),
        (b"", MalformedError),
        (b" " * 3000, TooLargeError),
    ],
)
def test_an_error_stops_a_call_at_its_body(tmp_path: Path, wrong: bytes, kind: type[BrainError]) -> None:
    with open_store(tmp_path, max_body_bytes=2000) as store:
        episode = begin(store, 1)

        async def use() -> None:
            bodies = [as_json(step(0)), as_json(step(1)), wrong, as_json(step(2))]
            found = await store.ingest(episode, bodies, JSON)
            assert found.appended is not None
            assert (found.appended.step_index, found.consumed) == (1, 2)
            assert type(found.error) is kind
            assert (await store.ingest(episode, [as_json(step(2))])).consumed == 1

        drive(use)
        assert indices(store, episode) == [0, 1, 2]


ONE_BODY = st.sampled_from(
    [
        as_json(step(None)),
        as_json(step(0)),
        as_json(step(2)),
        as_json(step(3, reward=2)),
        as_json(step(None, is_terminal=True)),
        as_json([step(None), step(None)]),
        as_json(step(None, reward="much")),
        as_json(step(None, executed_action={"command": [0.5]})),
        b" " + as_json(step(None)),
        b"{",
        b"",
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ONE_BODY, min_size=2, max_size=6), st.booleans())
def test_bodies_of_one_call_are_taken_as_calls_of_their_own_are(
    store: EpisodeStore, bodies: list[bytes], begun: bool
) -> None:
    together, alone = begin(store, int(begun)), begin(store, int(begun))

    async def use() -> None:
        found = await store.ingest(together, bodies)
        answers = []
        for body in bodies:
            answers.append(await store.ingest(alone, [body]))
            if answers[-1].error is not None:
                break
        taken = [answer.appended for answer in answers if answer.appended is not None]
        assert found.consumed == len(taken)
        assert (found.appended and found.appended.step_index) == (taken[-1].step_index if taken else None)
        assert type(found.error) is type(answers[-1].error)

    drive(use)

    def values(episode: str) -> list[Any]:
        return [
            (record["observation"], record["action"], record["reward"], record["step_metadata"]["step_index"])
            for record in store.steps(episode, 0, 100)
        ]

    assert values(together) == values(alone)
    for episode in (together, alone):
        store.end(episode)


def test_calls_that_wait_together_are_answered_each_for_itself(store: EpisodeStore) -> None:
    """They go to the log in one write; what one of them did wrong is none of the others' business."""
    one, other = begin(store), begin(store)

    async def use() -> None:
        with busy(store, one), busy(store, other):
            store_calls = [
                store.ingest(one, [as_json(step(0)), as_json(step(1))]),
                store.ingest(other, [as_json(step(0))]),
                store.ingest(one, [as_json(step(9))]),
                store.ingest(one, [as_json(step(2)), b"{", as_json(step(3))]),
                store.ingest(other, [as_json(step(1))]),
                store.ingest(one, [as_json(step(3))]),
            ]
        found = await asyncio.gather(*store_calls)
        assert [answer.consumed for answer in found] == [2, 1, 0, 1, 1, 1]
        assert [type(answer.error) for answer in found if answer.error] == [ConflictError, MalformedError]

    drive(use)
    assert (indices(store, one), indices(store, other)) == ([0, 1, 2, 3], [0, 1])


def test_an_episode_that_is_busy_holds_up_no_other(store: EpisodeStore) -> None:
    held, free = begin(store, 1), begin(store, 1)

    async def use() -> None:
        with busy(store, held):
            waiting = [store.ingest(held, [as_json(step(i))]) for i in range(1, 5)]
            for index in range(1, 20):
                assert (await store.ingest(free, [as_json(step(index))])).error is None
            assert not any(call.done() for call in waiting)
        assert [(await call).consumed for call in waiting] == [1] * 4

    drive(use)
    assert indices(store, held) == list(range(5))


def test_a_large_body_and_what_follows_it_keep_their_order(store: EpisodeStore) -> None:
    episode = begin(store, features=SPEC)
    bodies = [as_json([step(i) for i in range(first, first + 2500)]) for first in (0, 2500)]
    assert len(bodies[0]) > 256 * 1024

    async def use() -> None:
        calls = [store.ingest(episode, [body]) for body in bodies]
        calls += [store.ingest(episode, [as_json(step(i))]) for i in range(5000, 5010)]
        assert [(await call).error for call in calls] == [None] * 12

    drive(use)
    assert indices(store, episode) == list(range(5010))


def test_what_is_not_open_here_says_so(store: EpisodeStore) -> None:
    ended = begin(store, 1)
    store.end(ended)

    async def use() -> None:
        for episode, kind in ((ended, ConflictError), ("nobody", NotFoundError), ("../x", NotFoundError)):
            found = await store.ingest(episode, [as_json(step(1))])
            assert (found.consumed, type(found.error)) == (0, kind)

    drive(use)


def test_an_episode_of_the_last_run_goes_on(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        episode = begin(store, 3)
    store = EpisodeStore(tmp_path, store._settings)
    store.start()

    async def use() -> None:
        through: list[int] = []
        unwatch = store.watch_durable(episode, through.append)
        found = await store.ingest(episode, [as_json(step(2)), as_json(step(3))])
        assert (found.consumed, found.error) == (2, None)
        await until(lambda: 3 in through)
        unwatch()

    drive(use)
    store.close()


def test_durability_step_answers_when_it_is_on_the_medium(tmp_path: Path) -> None:
    with open_store(tmp_path, durability="step") as store:
        episodes = [begin(store) for _ in range(4)]

        async def client(episode: str) -> None:
            for index in range(20):
                found = await store.ingest(episode, [as_json(step(index))])
                assert found.appended is not None
                assert found.appended.durable_through >= index

        async def use() -> None:
            await asyncio.gather(*map(client, episodes))
            found = await store.ingest(episodes[0], [as_json(step(20)), b"{"])
            assert found.appended is not None
            assert (found.appended.durable_through, found.consumed) == (20, 1)
            assert isinstance(found.error, MalformedError)

        drive(use)


def test_watchers_hear_of_every_flush_until_they_leave(tmp_path: Path) -> None:
    with open_store(tmp_path, sync_interval_s=0.01) as store:
        episode = begin(store)

        async def use() -> None:
            heard: list[int] = []
            unwatch = store.watch_durable(episode, heard.append)
            for index in range(3):
                await store.ingest(episode, [as_json(step(index))])
                await until(lambda index=index: index in heard)  # type: ignore[misc]
            assert heard == sorted(heard)
            unwatch()
            unwatch()
            await store.ingest(episode, [as_json(step(3))])
            await store.run(store.end, episode, "truncated")
            assert 3 not in heard

        drive(use)


def test_who_left_while_another_thread_opened_the_log_is_not_followed(tmp_path: Path) -> None:
    with open_store(tmp_path, sync_interval_s=0.01) as store:
        episode = begin(store)
        writer = store._open.find(episode)
        assert writer is not None

        async def use() -> None:
            heard: list[int] = []
            watcher = _Watcher(episode, asyncio.get_running_loop(), heard.append)
            watcher.stop()
            watcher.follow(writer)
            await store.ingest(episode, [as_json(step(0))])
            await store.run(store.end, episode, "truncated")
            await asyncio.sleep(0.05)
            assert heard == []

        drive(use)


def test_more_than_the_queue_may_hold_is_refused_at_once(tmp_path: Path) -> None:
    with open_store(tmp_path, max_queued_bytes=20_000) as store:
        episode = begin(store)

        async def use() -> None:
            with busy(store, episode):
                calls = [store.ingest(episode, [as_json(step(i)) + b" " * 3000]) for i in range(10)]
                refused = [call for call in calls if call.done()]
                assert 0 < len(refused) < 10
                for call in refused:
                    error = call.result().error
                    assert isinstance(error, UnavailableError)
                    assert error.members["retry_after_s"] > 0
                assert 0 < store.status()["queued_bytes"] <= 20_000
            accepted = [(await call).consumed for call in calls]
            assert accepted == [1] * (10 - len(refused)) + [0] * len(refused)
            assert store.status()["queued_bytes"] == 0

        asyncio.run(use())


def test_a_robot_that_sends_too_fast_is_slowed_down(tmp_path: Path) -> None:
    with open_store(tmp_path, max_steps_per_s=100, max_batch_steps=50) as store:
        episode = begin(store)

        async def use() -> None:
            sent = 0
            refusals: list[BrainError] = []
            begun = time.monotonic()
            while sent < 200:
                found = await store.ingest(episode, [as_json([step(i) for i in range(sent, sent + 50)])])
                if found.error is None:
                    sent += 50
                    continue
                assert isinstance(found.error, TooManyError)
                refusals.append(found.error)
                # What is stored already costs nothing.
                assert (await store.ingest(episode, [as_json(step(0))])).error is None
                await asyncio.sleep(found.error.members["retry_after_s"])
            assert refusals
            assert time.monotonic() - begun > 0.05

        drive(use)
        assert indices(store, episode) == list(range(200))


def test_a_closed_store_refuses(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        episode = begin(store, 1)

    async def use() -> None:
        error = (await store.ingest(episode, [as_json(step(1))])).error
        assert isinstance(error, UnavailableError)
        assert "shutting down" in error.detail

    drive(use)


def test_a_defect_in_one_call_ends_neither_lane() -> None:
    """Whatever a writer may raise by mistake, the next call is answered."""

    class Defective:
        answers_when_durable = False
        durable_through = -1

        def take(self, *_: Any, considerate: bool = False) -> Any:
            raise ZeroDivisionError(f"considerate {considerate}")

        def take_now(self, *_: Any) -> Any:
            raise ZeroDivisionError("now")

        def when_durable(self, *_: Any) -> None:
            raise AssertionError

    ingest = Ingest({"a": Defective()}.get, lambda _: Defective(), lambda _: None, 10_000)
    ingest.start()

    async def use() -> None:
        for episode, text in (("a", "now"), ("b", "considerate"), ("a", "now"), ("b", "considerate")):
            with pytest.raises(ZeroDivisionError, match=text):
                await ingest.submit(episode, [b"{}"], JSON)
        assert ingest.queued_bytes == 0

    drive(use)
    ingest.close()


@pytest.mark.parametrize("episode", ["known", "found"])
def test_a_defect_behind_an_answer_gives_its_room_back_once(episode: str) -> None:
    class Defective:
        answers_when_durable = True
        durable_through = -1

        def take(self, bodies: Sequence[bytes], *_: Any, considerate: bool = False) -> Taken:
            return Taken([Appended(n, -1, 1) for n in range(len(bodies))])

        take_now = take

        def when_durable(self, *_: Any) -> None:
            raise ZeroDivisionError

    ingest = Ingest({"known": Defective()}.get, lambda _: Defective(), lambda _: None, 10_000)
    ingest.start()

    async def use() -> None:
        calls = [ingest.submit(episode, [b"{}"], JSON) for _ in range(3)]
        for call in calls:
            with pytest.raises(ZeroDivisionError):
                await call
        assert ingest.queued_bytes == 0

    drive(use)
    ingest.close()


def test_one_episode_leaves_room_for_the_others(tmp_path: Path) -> None:
    body = as_json(step())
    with open_store(tmp_path, max_queued_bytes=8 * (len(body) + 1024)) as store:
        greedy, modest = begin(store), begin(store)

        async def use() -> None:
            with busy(store, greedy), busy(store, modest):
                many = [store.ingest(greedy, [body]) for _ in range(8)]
                few = [store.ingest(modest, [body]) for _ in range(3)]
                await until(lambda: sum(call.done() for call in many) == 4)
            refused = [(await call).error for call in many]
            assert [error is None for error in refused] == [True] * 4 + [False] * 4
            assert isinstance(refused[-1], UnavailableError)
            assert "for one episode half of it" in refused[-1].detail
            assert [(await call).error for call in few] == [None] * 3
            assert (await store.ingest(greedy, [body])).error is None

        drive(use)


def test_threads_and_loops_mix(store: EpisodeStore) -> None:
    """A recorder's thread and two event loops on one episode: each step is stored once, in some order."""
    episode = begin(store, 1)
    body = step()
    del body["timestamp_ns"]

    def by_loop() -> None:
        async def use() -> None:
            for _ in range(100):
                assert (await store.ingest(episode, [as_json(body)])).error is None

        asyncio.run(use())

    def by_thread() -> None:
        for _ in range(100):
            store.append_json(episode, as_json(body), JSON)

    threads = [threading.Thread(target=run) for run in (by_loop, by_loop, by_thread)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert indices(store, episode) == list(range(301))


def test_the_loop_goes_on_beside_a_huge_batch(store: EpisodeStore) -> None:
    """How late it may be is for the benchmark; here it has to turn at all while 10,000 steps are read."""
    wide = {"observation": {"s": [0.123456] * 100}, "action": {"a": 1}}
    # Declared, so that all of it takes the short way: the judge's is slow under the tests' type checks.
    features = {"observation": {"s": {"dtype": "float32", "shape": [100]}}, "action": {"a": {"dtype": "float32"}}}
    episode = begin(store, features=features)
    body = b"[" + b",".join([as_json(wide)] * 10_000) + b"]"

    async def use() -> None:
        call = store.ingest(episode, [body])
        turns = 0
        while not call.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert (await call).error is None
        assert turns > 20

    drive(use)
    assert store.get(episode)["steps"] == 10_000
