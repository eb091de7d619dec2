"""Steps of several sessions at once: the answers of steps alone, to each its own; a bound on those that wait."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.errors import BrainError, CorruptDataError, DeadlineExceededError, UnavailableError
from brain_service.export.bundle import Bundle
from brain_service.inference import InferenceRouter, InferReply
from brain_service.inference.arena import Arena, Layout
from brain_service.inference.batching import Batch, Batcher, Warmed, plan_portions, warm_buckets
from brain_service.inference.protocol import Run, Status
from tests.inference.conftest import Toys
from tests.inference.harness import ask, eventually, run, serving, stopped, worker_pid
from tests.inference.toy import LIMIT, NONFINITE, Floats, Reference, toy_observation

LAYOUT = Layout({"h": 5}, observation=2, action=1, horizon=3)
FAR_NS = 2**63


class Sums:
    """A policy in NumPy: the next carry and the response say which carry and request they were made from."""

    def __init__(self, buckets: tuple[int, ...] = (1, 4, 16), error: float = 0.0) -> None:
        self.buckets = buckets
        self.calls: list[int] = []
        self._error = error

    def run(self, carry: Floats, request: Floats, next_carry: Floats, response: Floats) -> None:
        assert len(carry) in self.buckets
        self.calls.append(len(carry))
        next_carry[...] = carry + request.sum(axis=1, keepdims=True)
        response[...] = 2.0 * carry[:, :1] + request[:, :1] + (self._error if len(carry) > 1 else 0.0)


@given(st.dictionaries(st.sampled_from([2, 4, 16, 64]), st.floats(0.1, 100.0)), st.integers(1, 64))
def test_a_plan_is_never_slower_than_one_by_one_nor_than_one_bucket(cost: dict[int, float], waiting: int) -> None:
    cost = {1: 1.0} | cost
    plan = plan_portions(cost)
    taken, left = 0.0, min(waiting, len(plan) - 1)
    best_single = [cost[size] for size in cost if size >= left]
    asked = left
    while left > 0:
        taken += cost[plan[left]]
        left -= plan[left]
    assert taken <= min([float(asked), *best_single]) + 1e-6


@given(st.lists(st.integers(0, 19), min_size=1, max_size=4, unique=True), st.integers(0, 1), st.integers(0, 3))
def test_a_batch_reads_and_writes_the_rows_it_was_given_and_no_other(
    rows: list[int], slot: int, place: int
) -> None:
    place = min(place, 4 - len(rows))
    arena = Arena.create(LAYOUT, 20)
    rng = np.random.default_rng(0)
    for block in (arena.rows.carry, arena.rows.request, arena.rows.response):
        block[...] = rng.uniform(-1, 1, block.shape)
    before = [block.copy() for block in (arena.rows.carry, arena.rows.request, arena.rows.response)]
    finite = Batch(Sums(), arena, 4).run(np.array(rows), np.full(len(rows), slot), place)
    assert finite.all()
    for row in range(20):
        read, written = before[0][row, slot], arena.row(row).carry[1 - slot][0]
        used = row in rows
        expected = read + before[1][row].sum() if used else before[0][row, 1 - slot]
        np.testing.assert_allclose(written, expected, atol=1e-6)
        response = np.full(3, 2 * read[0] + before[1][row, 0]) if used else before[2][row]
        np.testing.assert_allclose(arena.rows.response[row], response, atol=1e-6)
        np.testing.assert_array_equal(arena.rows.carry[row, slot], read)
    arena.close()


def steps(numbers: Sequence[int], deadline_ns: int = FAR_NS) -> list[Run]:
    return [Run(100 + row, row, 0, deadline_ns) for row in numbers]


def test_portions_follow_the_plan_and_every_step_is_answered_once() -> None:
    policy, arena = Sums(), Arena.create(LAYOUT, 32)
    batcher = Batcher(policy, arena)
    assert [len(dones) for dones in batcher.run(steps(range(5)))] == [1] * 5, "before it is warm: one by one"
    batcher.use(Warmed({1: 1.0, 4: 1.5, 16: 3.0}, {}))
    policy.calls.clear()
    portions = list(batcher.run([*steps(range(16)), *steps([20, 21, 22]), *steps([25])]))
    answered = [done for dones in portions for done in dones]
    assert sorted(done.sequence for done in answered) == sorted(100 + r for r in [*range(16), 20, 21, 22, 25])
    assert sorted(policy.calls) == [4, 16]
    for dones in portions:
        assert [done.place for done in dones] == list(range(len(dones)))
        assert {done.bucket for done in dones} == {4 if len(dones) <= 4 else 16}
    policy.calls.clear()
    (alone,) = next(iter(batcher.run(steps([7]))))
    assert policy.calls == [1] and (alone.bucket, alone.place) == (1, 0)
    arena.close()


def test_what_is_late_or_not_finite_in_a_batch_concerns_its_own_session_only() -> None:
    arena = Arena.create(LAYOUT, 8)
    batcher = Batcher(Sums(), arena)
    batcher.use(Warmed({1: 1.0, 4: 1.5}, {}))
    arena.rows.request[1, 0] = np.nan
    arena.rows.carry[2, 1] = 9.0
    (dones,) = batcher.run([*steps([0, 1]), *steps([2], deadline_ns=1), *steps([3])])
    found = {done.row: done.status for done in dones}
    assert found == {0: Status.OK, 1: Status.NONFINITE, 2: Status.EXPIRED, 3: Status.OK}
    assert (arena.rows.carry[2, 1] == 9.0).all(), "a late step writes nothing"
    arena.close()


def test_a_replay_gets_the_place_it_asks_for_or_an_error() -> None:
    arena = Arena.create(LAYOUT, 2)
    batcher = Batcher(Sums(), arena)
    batcher.use(Warmed({1: 1.0, 4: 99.0}, {}))
    ((done,),) = batcher.run([Run(1, 0, 0, FAR_NS, bucket=4, place=3)])
    assert (done.status, done.bucket, done.place) == (Status.OK, 4, 3)
    for bucket, place in ((16, 0), (4, 4)):
        with pytest.raises(CorruptDataError, match="in use"):
            list(batcher.run([Run(1, 0, 0, FAR_NS, bucket=bucket, place=place)]))
    arena.close()


def test_a_bucket_that_gives_other_numbers_is_refused(toys: Toys) -> None:
    bundle = Bundle.open(toys.models_dir / toys.first)
    layout = Layout.of(bundle.manifest)

    def warmed(error: float) -> Warmed:
        return warm_buckets(Sums(error=error), layout, bundle.golden(), bundle.manifest, (4, 16))

    good, bad, ill = warmed(0.0), warmed(2e-5 * 2 * LIMIT), warmed(float("nan"))
    assert set(good.cost) == {1, 4, 16} and not good.refused
    assert set(bad.cost) == set(ill.cost) == {1}
    assert "differs by 2.0e-05" in bad.refused[4] and "nan" in ill.refused[16]


async def piled_up(router: InferenceRouter, asks: Sequence[Any]) -> list[InferReply | BrainError]:
    """Start all asks while the worker stands still, so that it finds their steps together; return the results."""
    with stopped(worker_pid(router)):
        tasks = [asyncio.create_task(asked) for asked in asks]
        await asyncio.sleep(0.05)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, InferReply | BrainError) for result in results), results
    return results  # type: ignore[return-value]


async def warm(router: InferenceRouter, sessions: Sequence[str], rng: np.random.Generator) -> list[Floats]:
    """Let several steps wait once and return when the worker batches; returns the observations that were asked."""
    observations = [toy_observation(rng) for _ in sessions]
    await piled_up(router, [ask(router, s, o) for s, o in zip(sessions, observations, strict=True)])
    await eventually(lambda: router.status()["models"][0]["batches"] is not None)
    assert router.status()["models"][0]["batches"]["refused"] == {}
    return observations


def test_sessions_in_a_batch_get_what_they_would_get_alone(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, worker_hang_s=60.0) as router:
            rng = np.random.default_rng(1)
            live = {(await router.create_session()).session_id: Reference() for _ in range(24)}
            for reference, observation in zip(live.values(), await warm(router, list(live), rng), strict=True):
                reference.step(observation)
            seen = set()
            for step in range(1, 12):
                chosen = list(rng.permutation(list(live)))
                observations = [toy_observation(rng) for _ in chosen]
                asks = [ask(router, s, o) for s, o in zip(chosen, observations, strict=True)]
                for session_id, observation, reply in zip(
                    chosen, observations, await piled_up(router, asks), strict=True
                ):
                    assert isinstance(reply, InferReply) and reply.step == step
                    expected = live[session_id].step(observation)
                    np.testing.assert_allclose(reply.chunk, expected, rtol=0, atol=1e-5 * 2 * LIMIT)
                    seen.add(reply.bucket)
                    assert 0 <= reply.row < reply.bucket
            assert max(seen) > 1, seen
            lone = await ask(router, next(iter(live)), toy_observation(rng))
            assert (lone.bucket, lone.row) == (1, 0)

    run(scenario())


def test_a_nan_in_a_batch_is_withheld_from_its_session_only(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, worker_hang_s=60.0) as router:
            rng = np.random.default_rng(2)
            sessions = [(await router.create_session()).session_id for _ in range(8)]
            await warm(router, sessions, rng)
            observations = [toy_observation(rng) for _ in sessions]
            observations[3][2] = NONFINITE * 2
            results = await piled_up(
                router, [ask(router, s, o) for s, o in zip(sessions, observations, strict=True)]
            )
            assert isinstance(results[3], UnavailableError) and results[3].members["next_step"] == 1
            assert all(isinstance(result, InferReply) for n, result in enumerate(results) if n != 3)
            assert router.get_session(sessions[3]).next_step == 1

    run(scenario())


def test_of_too_many_waiting_steps_the_oldest_is_dropped_and_its_state_kept(toys: Toys) -> None:
    async def scenario() -> None:
        settings: dict[str, Any] = {"worker_hang_s": 60.0, "max_queued_steps": 3}
        async with serving(toys.models_dir, toys.cache_dir, toys.first, **settings) as router:
            rng = np.random.default_rng(3)
            sessions = [(await router.create_session()).session_id for _ in range(16)]
            results = await piled_up(router, [ask(router, s, toy_observation(rng)) for s in sessions])
            # Eight lie with the worker, three may wait; they come in this order, so 8 to 12 are the oldest.
            dropped = [number for number, result in enumerate(results) if isinstance(result, BrainError)]
            assert dropped == [8, 9, 10, 11, 12]
            for number in dropped:
                error = results[number]
                assert isinstance(error, UnavailableError) and error.members["next_step"] == 0
                assert "max_queued_steps" in error.detail
            assert router.status()["models"][0]["dropped_steps"] == 5
            observation = toy_observation(rng)
            reply = await ask(router, sessions[8], observation, step=0)
            np.testing.assert_allclose(reply.chunk, Reference().step(observation), atol=1e-6)

    run(scenario())


def test_a_deadline_that_passes_while_others_wait_drops_that_step_only(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, worker_hang_s=60.0) as router:
            rng = np.random.default_rng(4)
            sessions = [(await router.create_session()).session_id for _ in range(8)]
            await warm(router, sessions, rng)
            with stopped(worker_pid(router)):
                hasty = asyncio.create_task(ask(router, sessions[0], toy_observation(rng), deadline_ms=50.0))
                patient = [asyncio.create_task(ask(router, s, toy_observation(rng))) for s in sessions[1:]]
                with pytest.raises(DeadlineExceededError):
                    await hasty
            assert {reply.step for reply in await asyncio.gather(*patient)} == {1}
            assert router.get_session(sessions[0]).next_step == 1

    run(scenario())


def test_why_is_told_when_asked_for_and_for_a_repeat_too(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            session_id = (await router.create_session()).session_id
            observation = toy_observation(np.random.default_rng(5))
            silent = await ask(router, session_id, observation, step=0)
            assert silent.why is None
            repeat = await ask(router, session_id, observation, step=0, why=True)
            assert repeat.why is not None and repeat.chunk is silent.chunk
            told = (await ask(router, session_id, observation, step=1, why=True)).why
            assert told is not None
            assert (told["model_id"], told["backend"], told["state_step"]) == (toys.first, "jax-cpu", 1)
            assert (told["bucket"], told["row"]) == (1, 0)
            assert told["fallback"] is None and told["backend_reason"]
            assert 0 <= told["golden_parity"] <= 1e-5 and told["timings_us"]["compute"] > 0

    run(scenario())
