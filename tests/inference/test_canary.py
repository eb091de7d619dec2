"""A model in shadow: what it must not do, and that nobody hears it."""

import asyncio

import numpy as np
import pytest

from brain_service.errors import ConflictError
from brain_service.inference import InferenceRouter
from brain_service.spec import EpisodeSpec
from tests.inference.conftest import Toys
from tests.inference.harness import ask, eventually, run, serving, stopped, worker_pid
from tests.inference.toy import SPEC, Reference, build_toy, toy_observation


class Robot:
    """A session that goes on asking and holds every answer against the toy model."""

    def __init__(self, router: InferenceRouter, scale: float, load: float = 0.0) -> None:
        self.answers = 0
        self._router = router
        self._reference = Reference(scale)
        self._load = load
        self._stop = False

    async def drive(self) -> None:
        session = await self._router.create_session()
        rng = np.random.default_rng(5)
        while not self._stop:
            observation = toy_observation(rng)
            observation[2] = self._load
            reply = await ask(self._router, session.session_id, observation)
            np.testing.assert_allclose(reply.chunk, self._reference.step(observation), atol=1e-5)
            assert reply.model_id == session.model_id and reply.state_step == self.answers
            self.answers += 1

    async def __aenter__(self) -> "Robot":
        self._task = asyncio.create_task(self.drive())
        await eventually(lambda: self.answers > 5 or self._task.done())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await self._task


def sessions_of(router: InferenceRouter, model_id: str) -> int:
    return sum(model["sessions"] for model in router.status()["models"] if model["model_id"] == model_id)


def test_what_the_canary_refuses_and_the_old_goes_on(toys: Toys) -> None:
    saturated = build_toy(toys.models_dir, scale=1000.0)
    fragile = build_toy(toys.models_dir, scale=1.5, nan_above=2.0)

    async def scenario() -> None:
        settings = {"canary_steps": 20, "canary_timeout_s": 30.0}
        async with serving(toys.models_dir, toys.cache_dir, toys.first, **settings) as router:
            async with Robot(router, 1.0, load=3.0) as robot:
                with pytest.raises(ConflictError, match=r"refused by its canary: .*at their limits"):
                    await router.activate(saturated)
                with pytest.raises(ConflictError, match=r"refused by its canary: .*NaN"):
                    await router.activate(fragile)
                assert router.status()["active_model"] == toys.first
                assert "NaN" in router.status()["canary"]
                before = robot.answers
                await eventually(lambda: robot.answers > before + 5)
            # Refused models are stopped like drained ones.
            await eventually(lambda: len(router.status()["models"]) == 1)
            assert not (toys.models_dir / "previous").is_symlink()

    run(scenario())


def test_a_good_model_passes_in_shadow_and_leaves_no_row(toys: Toys) -> None:
    async def scenario() -> None:
        settings = {"canary_steps": 20, "canary_timeout_s": 30.0}
        async with serving(toys.models_dir, toys.cache_dir, toys.first, **settings) as router:
            async with Robot(router, 1.0):
                report = await router.activate(toys.second)
                assert report is not None and report.startswith("20 live steps of 1 sessions in shadow"), report
                assert router.status()["active_model"] == toys.second
                assert sessions_of(router, toys.second) == 0
            session = await router.create_session()
            observation = toy_observation(np.random.default_rng(1))
            reply = await ask(router, session.session_id, observation)
            np.testing.assert_allclose(reply.chunk, Reference(2.0).step(observation), atol=1e-6)

    run(scenario())


def test_a_shadow_that_hangs_delays_no_answer_and_is_refused(toys: Toys) -> None:
    async def scenario() -> None:
        settings = {"canary_steps": 20, "canary_timeout_s": 30.0, "worker_hang_s": 1.0}
        async with serving(toys.models_dir, toys.cache_dir, toys.first, **settings) as router:
            await router.activate(toys.second)
            await router.activate(toys.first)
            # `second` is loaded and waits as the rollback: frozen, it stands for a model that never answers.
            frozen = worker_pid(router, toys.second)
            async with Robot(router, 1.0) as robot:
                with stopped(frozen):
                    trial = asyncio.create_task(router.activate(toys.second))
                    before = robot.answers
                    await eventually(lambda: robot.answers > before + 30)
                    with pytest.raises(
                        ConflictError, match="refused by its canary: the inference worker gave no answer"
                    ):
                        await trial
                assert router.status()["active_model"] == toys.first

    run(scenario())


def test_why_a_canary_was_skipped(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, canary_steps=20, canary_timeout_s=0.2) as router:
            assert await router.activate(toys.first) == "skipped: no other model serves"
            assert await router.activate(toys.first) is None
            assert "no live session" in str(await router.activate(toys.second))
            session = await router.create_session()
            await ask(router, session.session_id, toy_observation(np.random.default_rng(2)))
            assert "no live" in str(await router.activate(toys.first))

    run(scenario())


def test_a_model_of_another_spec_is_refused_while_sessions_live(toys: Toys) -> None:
    joints, load = SPEC.observation["arm/joints"], SPEC.observation["load"]
    other = build_toy(
        toys.models_dir, spec=EpisodeSpec({"arm/joints": joints, "weight": load}, SPEC.action), scale=1.0
    )

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            session = await router.create_session()
            with pytest.raises(ConflictError, match=r"observation/load is missing, .*End the 1 live sessions"):
                await router.activate(other)
            await router.end_session(session.session_id)
            with pytest.raises(ConflictError, match="does not fit this robot"):
                await router.activate(other, by_itself=True)
            assert [model["model_id"] for model in router.status()["models"]] == [toys.first]
            await router.activate(other)
            assert (await router.create_session()).model_id == other

    run(scenario())
