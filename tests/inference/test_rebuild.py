"""Live sessions that move to a new model: their state comes from their own last inputs, and from nothing else."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from brain_service.errors import ConflictError
from brain_service.inference import InferenceRouter, InferReply
from tests.inference.conftest import Toys
from tests.inference.harness import ask, eventually, run, serving
from tests.inference.toy import Floats, Reference, build_toy, toy_observation

KEPT = 8


class Robot:
    """A session and all that it was asked and answered: enough to compute every answer by hand."""

    def __init__(self, router: InferenceRouter, scales: dict[str, float], seed: int, kept: int = KEPT) -> None:
        self.router = router
        self.models: list[str] = []
        self.moves = 0
        self._scales = scales
        self._rng = np.random.default_rng(seed)
        self._kept = kept
        self._asked: list[tuple[Floats, float, Floats]] = []

    async def begin(self) -> None:
        info = await self.router.create_session()
        self.session_id = info.session_id
        self._asked, self._since = [], 0
        self._model_id, self._reference = info.model_id, Reference(self._scales[info.model_id])

    async def step(self) -> InferReply:
        observation, reward = toy_observation(self._rng), float(self._rng.uniform(-1, 1))
        reply = await ask(self.router, self.session_id, observation, step=len(self._asked), reward=reward)
        if reply.model_id != self._model_id:
            self._model_id, self._since = reply.model_id, len(self._asked)
            self.moves += 1
            # What was asked while the state was rebuilt was replayed too.
            assert min(self._kept, self._since) <= reply.state_step <= self._since
            seen = self._asked[self._since - reply.state_step :]
            self._reference = replayed(self._scales[reply.model_id], seen)
        assert reply.model_since_step == self._since
        assert reply.state_step == self._reference.count
        before = self._asked[-1][2] if self._asked else np.zeros(2, np.float32)
        self._reference.previous = before
        expected = self._reference.step(observation, reward)
        np.testing.assert_allclose(reply.chunk, expected, rtol=0, atol=1e-5)
        self._asked.append((observation, reward, reply.chunk[0]))
        self.models.append(reply.model_id)
        return reply


def replayed(scale: float, asked: Sequence[tuple[Floats, float, Floats]]) -> Reference:
    """The toy model that has seen these steps; the actions before each are those that the robot was answered."""
    reference, before = Reference(scale), np.zeros(2, np.float32)
    for observation, reward, answered in asked:
        reference.previous = before
        reference.step(observation, reward)
        before = answered
    return reference


def moved(router: InferenceRouter, model_id: str) -> bool:
    return all(session.model_id == model_id for session in router.list_sessions())


def test_idle_and_asking_sessions_move_with_their_last_inputs(toys: Toys) -> None:
    async def scenario() -> None:
        settings: dict[str, Any] = {"on_swap": "replay", "replay_steps": KEPT}
        async with serving(toys.models_dir, toys.cache_dir, toys.first, **settings) as router:
            robots = [Robot(router, toys.scales, seed) for seed in range(6)]
            for number, robot in enumerate(robots):
                await robot.begin()
                # None at all, fewer than are kept, as many, and more.
                for _ in range((0, 3, KEPT, KEPT + 1, 30, 41)[number]):
                    await robot.step()
            asking = asyncio.create_task(steps(robots[5], 60))
            await router.activate(toys.second)
            await asking
            await eventually(lambda: moved(router, toys.second))
            infos = {info.session_id: info for info in router.list_sessions()}
            seen = [infos[robot.session_id].state_steps for robot in robots[:5]]
            assert seen == [0, 3, KEPT, KEPT, KEPT]
            assert infos[robots[4].session_id].model_since_step == 30
            for robot in robots:
                await steps(robot, 5)
            # And once more: what was asked on either model is replayed on the third.
            await router.rollback()
            await eventually(lambda: moved(router, toys.first))
            for robot in robots:
                await steps(robot, 5)
            # A repeat of a step before the move still gets the answer that it got.
            assert (await robots[0].router.reset_session(robots[0].session_id)).model_since_step == 0

    async def steps(robot: Robot, count: int) -> None:
        for _ in range(count):
            await robot.step()

    run(scenario())


@pytest.mark.parametrize("on_swap", ["finish", "replay"])
def test_swaps_without_a_pause_lose_and_mix_nothing(toys: Toys, on_swap: str) -> None:
    """The law behind `bench_swap`, with fewer requests: each action names its model and the steps of its state."""

    def enough(robot: Robot) -> bool:
        return len(robot.models) > 200 and len(set(robot.models)) == 2

    async def drive(robot: Robot, stop: asyncio.Event) -> int:
        answered = 0
        while not stop.is_set():
            await robot.begin()
            for _ in range(100):
                await robot.step()
                await asyncio.sleep(0.002)
            assert on_swap == "replay" or len(set(robot.models[-100:])) == 1
            await robot.router.end_session(robot.session_id)
            answered += 100
        return answered

    async def scenario() -> None:
        settings: dict[str, Any] = {"on_swap": on_swap, "replay_steps": KEPT}
        async with serving(toys.models_dir, toys.cache_dir, toys.first, **settings) as router:
            await router.activate(toys.second)
            stop = asyncio.Event()
            robots = [Robot(router, toys.scales, seed) for seed in range(4)]
            driving = [asyncio.create_task(drive(robot, stop)) for robot in robots]
            served = [await router.rollback() for _ in range(2)]
            wanted = 3 if on_swap == "replay" else 0
            while not all(map(enough, robots)) or sum(robot.moves for robot in robots) < wanted:
                if any(task.done() for task in driving):
                    break
                served.append(await router.rollback())
                await router._oversight._rebuilt()
                await asyncio.sleep(0.02)
            stop.set()
            await asyncio.gather(*driving)
            assert len(served) > 4 and set(served) == {toys.first, toys.second}
            assert all(map(enough, robots))
            assert router.status()["deadline_misses"] == 0

    run(scenario())


def test_a_state_that_cannot_be_rebuilt_finishes_where_it_is(toys: Toys) -> None:
    fragile = build_toy(toys.models_dir, scale=1.5, nan_above=2.0)

    async def scenario() -> None:
        settings: dict[str, Any] = {"on_swap": "replay", "replay_steps": KEPT}
        async with serving(toys.models_dir, toys.cache_dir, toys.first, **settings) as router:
            session, reference = (await router.create_session()).session_id, Reference()
            observation = np.array([0.3, 0.4, 3.0], np.float32)
            await ask(router, session, observation)
            reference.step(observation)
            await router.activate(fragile)
            oversight = router._oversight
            await oversight._rebuilt()
            reply = await ask(router, session, observation)
            assert reply.model_id == toys.first
            np.testing.assert_allclose(reply.chunk, reference.step(observation), atol=1e-6)
            assert sum(model["sessions"] for model in router.status()["models"]) == 1

    run(scenario())


def test_a_session_that_ends_or_resets_meanwhile_is_left_alone(toys: Toys) -> None:
    async def scenario() -> None:
        settings: dict[str, Any] = {"on_swap": "replay", "replay_steps": KEPT}
        async with serving(toys.models_dir, toys.cache_dir, toys.first, **settings) as router:
            robots = [Robot(router, toys.scales, seed) for seed in range(12)]
            for robot in robots:
                await robot.begin()
                for _ in range(KEPT):
                    await robot.step()
            await router.activate(toys.second)
            for robot in robots[::2]:
                await router.end_session(robot.session_id)
                with pytest.raises(ConflictError):
                    await robot.step()
            for robot in robots[1::2]:
                info = await router.reset_session(robot.session_id)
                assert (info.model_id, info.model_since_step, info.state_steps) == (toys.second, 0, 0)
            await eventually(lambda: sum(model["sessions"] for model in router.status()["models"]) == 6)

    run(scenario())
