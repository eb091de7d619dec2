"""A late answer is dropped and changes nothing; a frozen worker is shown with SIGSTOP."""

import asyncio
import time

import numpy as np
import pytest

from brain_service.errors import ConflictError, DeadlineExceededError, UnavailableError
from tests.inference.conftest import Toys
from tests.inference.harness import ask, eventually, refused, run, serving, stopped, worker_pid
from tests.inference.toy import Reference, toy_observation


def test_a_late_step_is_dropped_and_any_body_may_follow(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, worker_hang_s=60.0) as router:
            session_id = (await router.create_session()).session_id
            rng, reference = np.random.default_rng(1), Reference()
            first, late, fresh = (toy_observation(rng) for _ in range(3))
            await ask(router, session_id, first)
            reference.step(first)
            with stopped(worker_pid(router)):
                error = await refused(router, session_id, late, step=1, deadline_ms=50.0)
                assert isinstance(error, DeadlineExceededError) and error.members["next_step"] == 1
            reply = await ask(router, session_id, fresh, step=1)
            np.testing.assert_allclose(reply.chunk, reference.step(fresh), atol=1e-6)
            assert router.status()["deadline_misses"] == 1

    run(scenario())


def test_a_deadline_that_passed_before_receipt_reaches_no_worker(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            session_id = (await router.create_session()).session_id
            observation = toy_observation(np.random.default_rng(2))
            long_ago_ns = time.monotonic_ns() - 1_000_000_000
            error = await refused(router, session_id, observation, deadline_ms=900.0, received_ns=long_ago_ns)
            assert isinstance(error, DeadlineExceededError) and error.members["next_step"] == 0
            reply = await ask(router, session_id, observation, deadline_ms=5000.0, received_ns=long_ago_ns)
            np.testing.assert_allclose(reply.chunk, Reference().step(observation), atol=1e-6)
            assert reply.timings_us["queue"] >= 1e6

    run(scenario())


def test_the_next_step_waits_until_the_late_one_lets_go_of_the_row(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, worker_hang_s=60.0) as router:
            session_id = (await router.create_session()).session_id
            rng = np.random.default_rng(3)
            late, impatient, patient = (toy_observation(rng) for _ in range(3))
            with stopped(worker_pid(router)):
                for observation in (late, impatient):
                    error = await refused(router, session_id, observation, step=0, deadline_ms=50.0)
                    assert isinstance(error, DeadlineExceededError) and error.members["next_step"] == 0
                waiting = asyncio.create_task(ask(router, session_id, patient, step=0))
                await asyncio.sleep(0.05)
                assert not waiting.done()
            np.testing.assert_allclose((await waiting).chunk, Reference().step(patient), atol=1e-6)

    run(scenario())


def test_a_client_that_goes_away_changes_nothing(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, worker_hang_s=60.0) as router:
            session_id = (await router.create_session()).session_id
            rng = np.random.default_rng(4)
            with stopped(worker_pid(router)):
                leaving = asyncio.create_task(ask(router, session_id, toy_observation(rng)))
                await asyncio.sleep(0.05)
                leaving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await leaving
            observation = toy_observation(rng)
            reply = await ask(router, session_id, observation, step=0)
            np.testing.assert_allclose(reply.chunk, Reference().step(observation), atol=1e-6)

    run(scenario())


def test_a_reset_under_a_step_on_its_way_drops_that_step(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, worker_hang_s=60.0) as router:
            session_id = (await router.create_session()).session_id
            rng = np.random.default_rng(5)
            with stopped(worker_pid(router)):
                under_way = asyncio.create_task(refused(router, session_id, toy_observation(rng)))
                await asyncio.sleep(0.05)
                await router.reset_session(session_id)
            error = await under_way
            assert isinstance(error, ConflictError) and error.members["next_step"] == 0
            observation = toy_observation(rng)
            reply = await ask(router, session_id, observation, step=0)
            np.testing.assert_allclose(reply.chunk, Reference().step(observation), atol=1e-6)

    run(scenario())


def test_a_hung_worker_is_killed_and_the_step_can_be_sent_again(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, worker_hang_s=0.3) as router:
            session_id = (await router.create_session()).session_id
            rng, reference = np.random.default_rng(6), Reference()
            first, second = toy_observation(rng), toy_observation(rng)
            await ask(router, session_id, first)
            reference.step(first)
            hung = worker_pid(router)
            with stopped(hung):
                error = await refused(router, session_id, second, step=1)
                assert isinstance(error, UnavailableError) and error.members["next_step"] == 1
                await eventually(lambda: router.ready)
            assert worker_pid(router) != hung
            reply = await ask(router, session_id, second, step=1)
            np.testing.assert_allclose(reply.chunk, reference.step(second), atol=1e-6)

    run(scenario())


def test_a_turn_that_was_just_passed_on_is_waited_for_until_the_deadline(toys: Toys) -> None:
    """One gives up, its turn goes to one that waits, and a third asks before that one has run."""

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, worker_hang_s=60.0) as router:
            session_id = (await router.create_session()).session_id
            observation = toy_observation(np.random.default_rng(4))
            with stopped(worker_pid(router)):
                hasty = asyncio.create_task(refused(router, session_id, observation, deadline_ms=200.0))
                await asyncio.sleep(0.05)
                patient = asyncio.create_task(ask(router, session_id, observation))
                while not hasty.done():  # noqa: ASYNC110  (to be there in the pass of the loop that frees the turn)
                    await asyncio.sleep(0)
                error = await refused(router, session_id, observation, deadline_ms=50.0)
                assert isinstance(error, DeadlineExceededError)
                assert not patient.done()
            assert (await patient).step == 0

    run(scenario())
