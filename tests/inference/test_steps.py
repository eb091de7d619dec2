"""What `/infer` answers: the model's numbers, once a step, in order, under the names that training saw."""

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from brain_service.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    TooManyError,
    UnavailableError,
)
from brain_service.inference import InferReply, InferRequest
from tests.inference.conftest import Toys
from tests.inference.harness import ask, eventually, refused, run, serving
from tests.inference.toy import LIMIT, NONFINITE, Floats, Reference, as_tree, toy_observation


def test_actions_are_the_models_with_action_and_reward_fed_back(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            session = await router.create_session()
            assert (session.model_id, session.next_step, session.action_horizon) == (toys.first, 0, 2)
            rng, reference = np.random.default_rng(1), Reference()
            for step in range(60):
                observation, reward = toy_observation(rng), float(rng.uniform(-1, 1))
                reply = await ask(router, session.session_id, observation, step=step, reward=reward)
                expected = reference.step(observation, reward)
                np.testing.assert_allclose(reply.chunk, expected, rtol=0, atol=1e-6)
                assert set(reply.action) == {"gripper", "velocity"}
                assert reply.action["gripper"].shape == () and reply.action["velocity"].shape == (1,)
                assert reply.action["velocity"][0] == reply.chunk[0, 1]
                assert (reply.step, reply.state_step, reply.model_id) == (step, step, toys.first)
                assert reply.backend == "jax-cpu" and set(reply.timings_us) == {"queue", "compute", "total"}
                assert reply.timings_us["total"] >= reply.timings_us["compute"] > 0
            assert router.status()["compute_us"]["count"] == 60

    run(scenario())


def test_actions_are_clamped_to_their_limits(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            session = await router.create_session()
            reply = await ask(router, session.session_id, np.array([900.0, -900.0, 0.0], np.float32))
            assert reply.chunk[0].tolist() == [LIMIT, -LIMIT]

    run(scenario())


def test_a_repeat_gets_the_stored_answer_and_moves_nothing(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            session_id = (await router.create_session()).session_id
            rng, reference = np.random.default_rng(2), Reference()
            observations = [toy_observation(rng) for _ in range(3)]
            for step, observation in enumerate(observations):
                reply = await ask(router, session_id, observation, step=step)
                again = await ask(router, session_id, toy_observation(rng), step=step)
                assert again is reply
                np.testing.assert_allclose(reply.chunk, reference.step(observation), atol=1e-6)
            assert router.get_session(session_id).next_step == 3

    run(scenario())


def test_the_same_step_sent_twice_at_once_is_computed_once(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            session_id = (await router.create_session()).session_id
            observation = toy_observation(np.random.default_rng(3))
            replies = await asyncio.gather(*(ask(router, session_id, observation, step=0) for _ in range(8)))
            assert all(reply is replies[0] for reply in replies)
            assert router.get_session(session_id).next_step == 1

    run(scenario())


def test_requests_that_race_for_a_step_leave_the_state_of_the_one_that_was_answered(toys: Toys) -> None:
    """Each step is asked for several times with different observations, at moments around the answer's arrival."""

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            session_id = (await router.create_session()).session_id
            rng, reference = np.random.default_rng(5), Reference()

            async def late_ask(observation: Floats, step: int, delay_s: float) -> InferReply:
                until = time.perf_counter() + delay_s
                while time.perf_counter() < until:  # noqa: ASYNC110  (a timer is too coarse to meet the answer)
                    await asyncio.sleep(0)
                return await ask(router, session_id, observation, step=step)

            for step in range(300):
                observations = [toy_observation(rng) for _ in range(5)]
                delays = [0.0, *rng.uniform(0, 4e-4, 4)]
                asked = [late_ask(o, step, d) for o, d in zip(observations, delays, strict=True)]
                replies = await asyncio.gather(*asked)
                assert all(reply is replies[0] for reply in replies)
                np.testing.assert_allclose(replies[0].chunk, reference.step(observations[0]), atol=1e-5)

    run(scenario())


def test_gaps_and_old_steps_conflict_and_name_the_next_step(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            session_id = (await router.create_session()).session_id
            observation = toy_observation(np.random.default_rng(4))
            for _ in range(3):
                await ask(router, session_id, observation)
            for step in (0, 1, 4, 900):
                error = await refused(router, session_id, observation, step=step)
                assert isinstance(error, ConflictError) and error.members["next_step"] == 3, error
            assert (await ask(router, session_id, observation, step=3)).step == 3

    run(scenario())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"observation": {"arm": {"joints": [0.0]}, "load": 0.0}}, "observation/arm/joints"),
    ({"observation": {"arm": {"joints": [0.0, 0.0]}}}, "observation/load"),
    ({"observation": {"arm": {"joints": [0.0, 0.0]}, "load": 0.0, "x": 1}}, "observation/x"),
    ({"observation": {"arm": {"joints": [0.0, float("nan")]}, "load": 0.0}}, "observation/arm/joints"),
    ({"observation": {}}, "observation"),
    ({"reward": float("inf")}, "reward"),
    ({"reward": 1e39}, "reward"),
    ({"step": -1}, "step"),
    ({"step": True}, "step"),
    ({"deadline_ms": 0.0}, "deadline_ms"),
    ({"deadline_ms": float("nan")}, "deadline_ms"),
    ({"deadline_ms": 1e9}, "deadline_ms"),
    ({"executed_action": {"gripper": 0.0}}, "executed_action/velocity"),
]


def test_a_wrong_field_is_named_and_the_state_untouched(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            session_id = (await router.create_session()).session_id
            rng, reference = np.random.default_rng(5), Reference()
            first = toy_observation(rng)
            reference.step(first)
            await ask(router, session_id, first)
            for next_step, (changes, field) in enumerate(WRONG, start=1):
                observation = toy_observation(rng)
                fields: dict[str, Any] = {"observation": as_tree(observation)} | changes
                with pytest.raises(InvalidError) as caught:
                    await router.infer(InferRequest(session_id, **fields))
                assert (caught.value.field, caught.value.members["next_step"]) == (field, next_step)
                reply = await ask(router, session_id, observation, step=next_step)
                np.testing.assert_allclose(reply.chunk, reference.step(observation), atol=1e-6)

    run(scenario())


def test_step_zero_ignores_reward_and_executed_action(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            session_id = (await router.create_session()).session_id
            observation = toy_observation(np.random.default_rng(6))
            reply = await ask(router, session_id, observation, reward=100.0, executed_action={"no": 1})
            np.testing.assert_allclose(reply.chunk, Reference().step(observation), atol=1e-6)

    run(scenario())


def test_an_unknown_or_ended_session_is_never_a_zero_state(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            ended = (await router.create_session()).session_id
            await router.end_session(ended)
            observation = toy_observation(np.random.default_rng(7))
            for session_id in (ended, "never-was"):
                error = await refused(router, session_id, observation)
                assert isinstance(error, ConflictError) and "POST /sessions" in error.detail
                with pytest.raises(NotFoundError):
                    router.get_session(session_id)
                with pytest.raises(NotFoundError):
                    await router.reset_session(session_id)
                with pytest.raises(NotFoundError):
                    await router.end_session(session_id)

    run(scenario())


def test_reset_begins_from_the_zero_state(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            session_id = (await router.create_session()).session_id
            rng = np.random.default_rng(8)
            for _ in range(5):
                await ask(router, session_id, toy_observation(rng))
            assert (await router.reset_session(session_id)).next_step == 0
            observation = toy_observation(rng)
            reply = await ask(router, session_id, observation, step=0)
            np.testing.assert_allclose(reply.chunk, Reference().step(observation), atol=1e-6)

    run(scenario())


def test_interleaved_sessions_never_share_state(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, max_sessions=50) as router:
            rng = np.random.default_rng(9)
            live = {(await router.create_session()).session_id: Reference() for _ in range(50)}
            for _ in range(40):
                chosen = rng.choice(list(live), 25, replace=False)
                observations = [toy_observation(rng) for _ in chosen]
                replies = await asyncio.gather(*map(ask, [router] * 25, chosen, observations))
                for session_id, observation, reply in zip(chosen, observations, replies, strict=True):
                    np.testing.assert_allclose(reply.chunk, live[session_id].step(observation), atol=1e-5)
                # An ended session's row goes to another one.
                del live[chosen[0]]
                await router.end_session(chosen[0])
                live[(await router.create_session()).session_id] = Reference()
            assert len(router.list_sessions()) == 50

    run(scenario())


def test_the_bound_on_sessions(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, max_sessions=2) as router:
            first, _ = await router.create_session(), await router.create_session()
            with pytest.raises(TooManyError, match="bound is 2"):
                await router.create_session()
            await router.end_session(first.session_id)
            await router.create_session()

    run(scenario())


def test_an_idle_session_is_evicted_and_told_so(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, session_idle_s=0.2) as router:
            session_id = (await router.create_session()).session_id
            observation = toy_observation(np.random.default_rng(10))
            await ask(router, session_id, observation)
            await eventually(lambda: not router.list_sessions())
            error = await refused(router, session_id, observation)
            assert isinstance(error, ConflictError) and "evicted" in error.detail
            assert router.status()["evicted_sessions"] == 1

    run(scenario())


def test_a_nonfinite_answer_is_withheld_and_the_state_kept(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            session_id = (await router.create_session()).session_id
            rng, reference = np.random.default_rng(11), Reference()
            first, second = toy_observation(rng), toy_observation(rng)
            await ask(router, session_id, first)
            reference.step(first)
            error = await refused(router, session_id, np.array([0.1, 0.2, NONFINITE * 2], np.float32))
            assert isinstance(error, UnavailableError) and error.members["next_step"] == 1
            assert router.status()["nonfinite_answers"] == 1
            reply = await ask(router, session_id, second)
            np.testing.assert_allclose(reply.chunk, reference.step(second), atol=1e-6)

    run(scenario())
