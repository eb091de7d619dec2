"""Rollback by itself: what condemns a model, what becomes of its sessions, and that it happens once."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brain_service.errors import BrainError, ConflictError, UnavailableError
from brain_service.inference import InferenceRouter
from tests.inference.conftest import Toys
from tests.inference.harness import ask, eventually, refused, run, serving, stopped, worker_pid
from tests.inference.toy import Reference, build_toy, toy_observation

RULES: dict[str, Any] = {"probation_s": 600.0, "window_steps": 40, "min_steps": 20}


def link(toys: Toys, name: str) -> str | None:
    path: Path = toys.models_dir / name
    return str(path.readlink()) if path.is_symlink() else None


async def drive_until_ended(router: InferenceRouter, session_id: str, load: float = 0.0) -> BrainError:
    """Ask until the session is refused for good, and return how."""
    rng = np.random.default_rng(3)
    for _ in range(2000):
        observation = toy_observation(rng)
        observation[2] = load
        try:
            await ask(router, session_id, observation)
        except ConflictError as error:
            return error
        except UnavailableError:
            await asyncio.sleep(0.01)
    raise AssertionError("the session goes on")


def test_nan_rolls_back_once_and_the_model_is_marked(toys: Toys) -> None:
    fragile = build_toy(toys.models_dir, scale=1.5, nan_above=2.0)
    ended: list[str] = []

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, rollback=RULES) as router:
            router._sessions._on_ended = ended.append
            old, reference = (await router.create_session()).session_id, Reference()
            await router.activate(fragile)
            new = (await router.create_session()).session_id
            error = await drive_until_ended(router, new, load=3.0)
            assert "was rolled back (3 of 3 steps gave NaN" in error.detail and ended == [new]
            assert router.status()["active_model"] == toys.first and router.status()["previous_model"] is None
            await eventually(lambda: link(toys, "active") == toys.first)
            # The session that began before goes on, and its own NaN condemns nobody: probation is over.
            for load in (0.0, 2e6, 2e6, 2e6, 2e6, 0.0):
                observation = np.array([0.3, -0.2, load], np.float32)
                if load:
                    assert isinstance(await refused(router, old, observation), UnavailableError)
                else:
                    reply = await ask(router, old, observation)
                    np.testing.assert_allclose(reply.chunk, reference.step(observation), atol=1e-6)
            assert len(router.status()["rollbacks"]) == 1
            # Neither a job nor a rollback brings it back; an operator does.
            (mark,) = [model["rejected"] for model in await router.models() if model["model_id"] == fragile]
            assert "NaN" in mark["evidence"] and (await router.model(fragile))["rejected"] == mark
            with pytest.raises(ConflictError, match=r"was rejected .*activate serves it all the same"):
                await router.activate(fragile, by_itself=True)
            with pytest.raises(ConflictError, match="no previous model"):
                await router.rollback()
            await router.activate(fragile)
            assert (await router.model(fragile))["rejected"] is None

    run(scenario())


def test_limit_hits_late_steps_and_dying_workers_roll_back(toys: Toys) -> None:
    saturated = build_toy(toys.models_dir, scale=1000.0)

    async def scenario() -> None:
        settings = {"worker_hang_s": 60.0, "rollback": RULES | {"max_worker_deaths": 1}}
        async with serving(toys.models_dir, toys.cache_dir, toys.first, **settings) as router:
            rng = np.random.default_rng(4)

            async def rolled_back(count: int) -> str:
                await eventually(lambda: len(router.status()["rollbacks"]) == count)
                assert router.status()["active_model"] == toys.first
                return str(router.status()["rollbacks"][-1]["evidence"])

            calm = (await router.create_session()).session_id
            for _ in range(25):
                await ask(router, calm, toy_observation(rng))
            await router.activate(saturated)
            await drive_until_ended(router, (await router.create_session()).session_id)
            assert "at their limits" in await rolled_back(1)

            await router.activate(toys.second)
            late = (await router.create_session()).session_id
            with stopped(worker_pid(router, toys.second)):
                for _ in range(200):
                    await refused(router, late, toy_observation(rng), deadline_ms=30.0)
                    if len(router.status()["rollbacks"]) == 2:
                        break
                assert "missed their deadline" in await rolled_back(2)

            await router.activate(toys.third)
            os.kill(worker_pid(router, toys.third), signal.SIGKILL)
            assert "its worker died" in await rolled_back(3)

    run(scenario())


def test_a_model_that_comes_well_through_is_the_last_good_one(toys: Toys) -> None:
    async def scenario() -> None:
        rules = RULES | {"probation_s": 0.01, "probation_steps": 10}
        async with serving(toys.models_dir, toys.cache_dir, toys.first, rollback=rules) as router:
            session = (await router.create_session()).session_id
            assert link(toys, "last_good") is None
            for _ in range(10):
                await ask(router, session, toy_observation(np.random.default_rng(6)))
            await eventually(lambda: link(toys, "last_good") == toys.first)
            await eventually(lambda: router.status()["probation"]["outcome"] == "passed")
        async with serving(toys.models_dir, toys.cache_dir, rollback=rules) as router:
            await eventually(lambda: router.ready)
            assert router.status()["probation"] is None

    run(scenario())


def test_without_a_model_before_the_evidence_is_told_and_it_goes_on(toys: Toys) -> None:
    saturated = build_toy(toys.models_dir, scale=1000.0)

    async def scenario() -> None:
        # Its own reference outputs saturate too: only late steps are beyond what is usual of it.
        async with serving(toys.models_dir, toys.cache_dir, saturated, rollback=RULES) as router:
            session = (await router.create_session()).session_id
            for _ in range(3):
                await refused(router, session, np.array([0.0, 0.0, 2e6], np.float32))
            await eventually(lambda: router.status()["probation"]["outcome"] is not None)
            assert "no previous model" in router.status()["probation"]["outcome"]
            await ask(router, session, np.zeros(3, np.float32))
            assert router.status()["active_model"] == saturated

    run(scenario())
