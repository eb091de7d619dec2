"""One backend fails under live sessions and the next takes over: real workers, real deaths, one shared memory."""

import asyncio
import contextlib
import dataclasses
import errno
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brain_service.errors import DeadlineExceededError, UnavailableError
from brain_service.inference import InferenceRouter, crew, engine
from brain_service.inference.arena import Arena
from brain_service.inference.backends import BACKENDS, BackendEntry
from tests.inference.conftest import Toys
from tests.inference.faulty import BROKEN, DAWDLE, DIE, DRIFT, HANG, LEAK, entry
from tests.inference.harness import ask, eventually, is_gone, refused, run, serving, stopped, worker_pid
from tests.inference.toy import Floats, Reference, build_toy, toy_graph, toy_observation

FIRST, SECOND, STEADY = entry("first", "hailo"), entry("second", "gpu"), entry("second", "gpu", steady=True)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FIRST, STEADY)


def use(monkeypatch: pytest.MonkeyPatch, *entries: BackendEntry) -> None:
    monkeypatch.setattr(crew, "BACKENDS", {each.name: each for each in entries})


@contextlib.asynccontextmanager
async def crewed(toys: Toys, cache: Path, **settings: Any) -> AsyncIterator[InferenceRouter]:
    # A starved worker is not to be taken for a hung one: only the test of hanging sets a short time.
    options = {"backends": ("hailo", "gpu"), "worker_hang_s": 60.0, "failover_s": 60.0} | settings
    async with serving(toys.models_dir, cache, toys.first, **options) as router:
        yield router


def model(router: InferenceRouter) -> Mapping[str, Any]:
    (found,) = router.status()["models"]
    return dict(found)


def decision(router: InferenceRouter, backend: str) -> Mapping[str, Any]:
    (found,) = [why for why in model(router)["why"] if why["backend"] == backend]
    return dict(found)


async def settled(router: InferenceRouter, standby: str) -> None:
    """Wait until a standby is up and its moves are measured."""
    await eventually(lambda: model(router)["standby"] == standby and bool(model(router)["moves"]))


def asking_to(what: float, rng: np.random.Generator) -> Floats:
    observation = toy_observation(rng)
    observation[2] = what
    return observation


class Robot:
    """A session and the reference beside it: a step that the state took twice, or not at all, shows at once."""

    def __init__(self, router: InferenceRouter, session_id: str) -> None:
        self.router = router
        self.session_id = session_id
        self.reference = Reference()
        self.rng = np.random.default_rng(7)
        self.step = 0

    @classmethod
    async def start(cls, router: InferenceRouter) -> "Robot":
        return cls(router, (await router.create_session()).session_id)

    async def act(self, load: float = 0.0) -> Any:
        observation = asking_to(load, self.rng)
        reply = await ask(self.router, self.session_id, observation, step=self.step)
        np.testing.assert_allclose(reply.chunk, self.reference.step(observation), atol=1e-5)
        self.step += 1
        return reply


@pytest.mark.usefixtures("two")
def test_a_step_under_which_the_worker_dies_is_answered_by_the_standby(toys: Toys, cache: Path) -> None:
    async def scenario() -> None:
        async with crewed(toys, cache) as router:
            await settled(router, "second")
            robot = await Robot.start(router)
            assert (await robot.act()).backend == "first"
            dead = worker_pid(router)
            reply = await robot.act(DIE)
            assert reply.backend == "second" and reply.step == 1
            assert any("second stands in for first" in warning for warning in reply.warnings), reply.warnings
            assert is_gone(dead) and router.status()["retried_steps"] == 1
            # The first comes back by itself, and sessions with it: no warning any more.
            await eventually(lambda: router.status()["backend"] == "first")
            for _ in range(5):
                reply = await robot.act()
            assert reply.backend == "first" and not reply.warnings
            assert decision(router, "first")["breaker"] == "closed" and decision(router, "first")["failures"] == 1
            assert router.status()["warnings"] == []

    run(scenario())


@pytest.mark.usefixtures("two")
def test_many_sessions_go_on_through_deaths_of_both_backends_in_turn(toys: Toys, cache: Path) -> None:
    async def scenario() -> None:
        async with crewed(toys, cache) as router:
            await settled(router, "second")
            robots = [await Robot.start(router) for _ in range(16)]
            for _ in range(3):
                await asyncio.gather(*(robot.act() for robot in robots))
                await eventually(lambda: model(router)["standby"] is not None)
                with stopped(worker_pid(router)) as _:
                    acting = [asyncio.create_task(robot.act()) for robot in robots]
                    await asyncio.sleep(0)
                    os.kill(worker_pid(router), signal.SIGKILL)
                await asyncio.gather(*acting)
            assert {robot.step for robot in robots} == {6}
            assert router.status()["deadline_misses"] == 0

    run(scenario())


@pytest.mark.usefixtures("two")
def test_a_hung_worker_is_given_up_for_the_standby_and_killed(toys: Toys, cache: Path) -> None:
    async def scenario() -> None:
        async with crewed(toys, cache, failover_s=1.0) as router:
            await settled(router, "second")
            robot = await Robot.start(router)
            await robot.act()
            hung = worker_pid(router)
            reply = await robot.act(HANG)
            assert reply.backend == "second" and "gave no answer" in reply.warnings[0]
            assert is_gone(hung)
            await robot.act()

    run(scenario())


def test_with_no_backend_left_the_answer_is_503_and_the_state_unchanged(
    toys: Toys, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, FIRST, SECOND)

    async def scenario() -> None:
        async with crewed(toys, cache) as router:
            await settled(router, "second")
            robot = await Robot.start(router)
            await robot.act()
            (cache / BROKEN).touch()
            # This input kills both, one after the other, and no third: there is none.
            error = await refused(router, robot.session_id, asking_to(DIE, robot.rng), step=1)
            assert isinstance(error, UnavailableError) and error.members["next_step"] == 1
            assert not router.ready and router.status()["state"] == "restarting"
            await eventually(lambda: "the device is broken" in (router.status()["error"] or ""))
            error = await refused(router, robot.session_id, toy_observation(robot.rng), step=1)
            assert isinstance(error, UnavailableError) and error.members["next_step"] == 1
            assert "the device is broken" in error.detail
            (cache / BROKEN).unlink()
            await eventually(lambda: router.ready)
            await robot.act()

    run(scenario())


@pytest.mark.usefixtures("two")
def test_a_backend_that_does_not_come_back_is_tried_again_later_and_says_so(toys: Toys, cache: Path) -> None:
    async def scenario() -> None:
        async with crewed(toys, cache) as router:
            await settled(router, "second")
            robot = await Robot.start(router)
            (cache / BROKEN).touch()
            await robot.act(DIE)
            await eventually(lambda: decision(router, "first")["failures"] >= 3)
            assert decision(router, "first")["breaker"] in ("open", "half-open")
            assert "the device is broken" in decision(router, "first")["reason"]
            reply = await robot.act()
            assert reply.backend == "second" and "the device is broken" in reply.warnings[0]
            (cache / BROKEN).unlink()
            await eventually(lambda: router.status()["backend"] == "first")
            assert (await robot.act()).backend == "first"

    run(scenario())


@pytest.mark.usefixtures("two")
def test_without_a_standby_the_next_backend_is_started_when_it_is_needed(toys: Toys, cache: Path) -> None:
    async def scenario() -> None:
        async with crewed(toys, cache, standby=False) as router:
            robot = await Robot.start(router)
            await robot.act()
            assert decision(router, "second")["worker_pid"] is None
            assert "not started" in decision(router, "second")["reason"]
            os.kill(worker_pid(router), signal.SIGKILL)
            (cache / BROKEN).touch()
            error = await refused(router, robot.session_id, toy_observation(robot.rng), step=1)
            assert isinstance(error, UnavailableError)
            (cache / BROKEN).unlink()
            await eventually(lambda: router.ready)
            await robot.act()
            # Where the first is back as well, the second rests again.
            await eventually(lambda: router.status()["backend"] == "first")
            await eventually(lambda: decision(router, "second")["worker_pid"] is None)
            await robot.act()

    run(scenario())


@pytest.mark.usefixtures("two")
def test_only_the_active_model_keeps_a_standby(toys: Toys, cache: Path) -> None:
    def standby(router: InferenceRouter) -> dict[str, Any]:
        return {each["role"]: each["standby"] for each in router.status()["models"]}

    async def scenario() -> None:
        async with crewed(toys, cache) as router:
            await settled(router, "second")
            await router.activate(toys.second)
            await eventually(lambda: standby(router) == {"active": "second", "previous": None})
            await router.rollback()
            await eventually(lambda: standby(router) == {"active": "second", "previous": None})
            assert router.status()["active_model"] == toys.first

    run(scenario())


def test_a_device_of_one_process_goes_to_the_active_model_and_its_sessions_move_off_it(
    toys: Toys, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, entry("first", "hailo", steady=True, exclusive=True), STEADY)

    def backends(router: InferenceRouter) -> dict[str, Any]:
        return {each["role"]: each["backend"] for each in router.status()["models"]}

    async def scenario() -> None:
        async with crewed(toys, cache) as router:
            await settled(router, "second")
            robot = await Robot.start(router)
            assert (await robot.act()).backend == "first"
            await router.activate(toys.second)
            while backends(router) != {"active": "first", "previous": "second"}:
                await robot.act()
                await asyncio.sleep(0.01)
            assert (await robot.act()).backend == "second"
            # Back again: the model before gets its device back too.
            await router.rollback()
            while backends(router) != {"active": "first", "previous": "second"}:
                await robot.act()
                await asyncio.sleep(0.01)
            assert (await robot.act()).backend == "first"
            assert router.status()["active_model"] == toys.first

    run(scenario())


@pytest.mark.usefixtures("two")
def test_a_backend_that_is_late_step_after_step_loses_its_place(toys: Toys, cache: Path) -> None:
    async def scenario() -> None:
        async with crewed(toys, cache) as router:
            await settled(router, "second")
            robot = await Robot.start(router)
            await robot.act()
            reply, late = None, 0
            while reply is None:
                observation = asking_to(DAWDLE, robot.rng)
                try:
                    reply = await ask(router, robot.session_id, observation, step=1, deadline_ms=30.0)
                except DeadlineExceededError as error:
                    late += 1
                    assert error.members["next_step"] == 1 and late < 200
            assert late >= 5 and reply.backend == "second" and "timed out" in reply.warnings[0]
            np.testing.assert_allclose(reply.chunk, robot.reference.step(observation), atol=1e-5)

    run(scenario())


def test_a_backend_whose_state_does_not_suit_another_never_stands_by_for_it(
    toys: Toys, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each alone gives the golden numbers; what one leaves in the state, the other reads as something else."""
    use(monkeypatch, FIRST, dataclasses.replace(BACKENDS["jax-cpu"], device="gpu"))
    (cache / DRIFT).touch()

    async def scenario() -> None:
        async with crewed(toys, cache) as router:
            await eventually(lambda: bool(model(router)["moves"]))
            (move,) = model(router)["moves"]
            assert move["backends"] == ["first", "jax-cpu"] and move["measured"] > move["bound"] == 2e-5
            assert "would see its actions change" in decision(router, "jax-cpu")["reason"]
            assert model(router)["standby"] is None and decision(router, "jax-cpu")["worker_pid"] is None
            robot = await Robot.start(router)
            await robot.act()
            os.kill(worker_pid(router), signal.SIGKILL)
            await eventually(lambda: model(router)["worker_restarts"] == 1 and router.ready)
            assert (await robot.act()).backend == "first"

    run(scenario())


@pytest.mark.usefixtures("two")
def test_a_worker_that_leaks_is_replaced_between_two_steps(
    toys: Toys, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(crew, "_POLL_S", 0.1)
    monkeypatch.setattr(engine, "_REPLACE_REST_S", 0.1)

    async def scenario() -> None:
        async with crewed(toys, cache, standby=False, worker_memory_bytes=300 * 1024**2) as router:
            robot = await Robot.start(router)
            fat = worker_pid(router)
            (cache / BROKEN).touch()
            for _ in range(5):
                await robot.act(LEAK)
            # No fresh one comes up: the fat one goes on.
            await eventually(lambda: "no fresh worker" in caplog.text)
            await robot.act()
            assert worker_pid(router) == fat
            (cache / BROKEN).unlink()
            while worker_pid(router) == fat:
                await robot.act()
                await asyncio.sleep(0.01)
            await eventually(lambda: is_gone(fat))
            await robot.act()
            assert "the limit is 315 MB" in model(router)["last_error"]
            assert router.status()["worker_restarts"] >= 2 and router.status()["retried_steps"] == 0

    run(scenario())


@pytest.mark.long
def test_a_device_that_looks_usable_and_does_not_load_is_passed_over_with_its_reason(
    toys: Toys, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JAX for a GPU, by the very code that runs on the CPU, where there is none; and a Hailo that is not there."""
    use(
        monkeypatch,
        dataclasses.replace(FIRST, probe=lambda: "no /dev/hailo0"),
        dataclasses.replace(BACKENDS["jax-gpu"], probe=lambda: None),
        entry("steady", "cpu", steady=True),
    )

    async def scenario() -> None:
        async with crewed(toys, cache, backends=("hailo", "gpu", "cpu")) as router:
            why = {each["backend"]: each for each in router.status()["why"]}
            assert {name for name, each in why.items() if each["used"]} == {"steady"}
            assert why["first"]["reason"] == "no /dev/hailo0"
            assert "no device of platform 'cuda'" in why["jax-gpu"]["reason"]
            robot = await Robot.start(router)
            reply = await robot.act()
            # It never served, so nothing stands in for it: that is a decision, not a failure.
            assert reply.backend == "steady" and not reply.warnings

    run(scenario())


def test_without_memory_for_the_state_what_serves_goes_on(
    toys: Toys, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, FIRST)

    async def scenario() -> None:
        async with crewed(toys, cache) as router:
            robot = await Robot.start(router)
            await robot.act()

            def no_memory(name: str, flags: int) -> int:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

            with monkeypatch.context() as patch:
                patch.setattr(os, "memfd_create", no_memory)
                with pytest.raises(UnavailableError, match="no shared memory"):
                    await router.activate(toys.second)
            # Memory that is gone when a worker is handed to it is told at once, not after the start's time limit.
            with monkeypatch.context() as patch:
                patch.setattr(Arena, "fd", property(lambda _: 10**6))
                with pytest.raises(UnavailableError, match="cannot start an inference worker"):
                    await router.activate(toys.second)
            await robot.act()
            assert router.status()["active_model"] == toys.first

    run(scenario())


@pytest.mark.long
def test_the_faster_of_jax_and_onnx_runtime_serves_and_the_other_stands_by(toys: Toys, cache: Path) -> None:
    shutil.rmtree(toys.models_dir / toys.first)
    assert build_toy(toys.models_dir, graph=toy_graph(1.0)) == toys.first

    async def scenario(chosen: str | None) -> str:
        async with crewed(toys, cache, backends=("cpu",)) as router:
            serves = router.status()["backend"]
            assert chosen in (None, serves)
            other = {"jax-cpu": "onnx-cpu", "onnx-cpu": "jax-cpu"}[serves]
            await settled(router, other)
            figures = {name: decision(router, name)["step_us"] for name in (serves, other)}
            if chosen is None:
                assert figures[serves] <= figures[other]
            for name, step_us in figures.items():
                assert f"{name} {step_us:.0f} us a step" in decision(router, serves)["reason"]
            (move,) = model(router)["moves"]
            assert move["measured"] <= move["bound"] == 2e-5
            robot = await Robot.start(router)
            await robot.act()
            with stopped(worker_pid(router)):
                acting = asyncio.create_task(robot.act())
                await asyncio.sleep(0)
                os.kill(worker_pid(router), signal.SIGKILL)
            assert (await acting).backend == other
            return str(serves)

    async def set_by_hand(runtime: str) -> None:
        async with crewed(toys, cache, backends=("cpu",), cpu_runtime=runtime, standby=False) as router:
            assert router.status()["backend"] == f"{runtime}-cpu"
            assert "set by inference.cpu_runtime" in decision(router, f"{runtime}-cpu")["reason"]

    async def twice() -> None:
        await scenario(await scenario(None))
        await set_by_hand("jax")
        await set_by_hand("onnx")

    run(twice())
