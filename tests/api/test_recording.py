"""The recorder alone, on a real store: order, what is held back, what is not recorded and why."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brain_service.api.recording import Recorder
from brain_service.episodes.schema import StepIn
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import UnavailableError
from brain_service.inference.calls import InferReply, InferRequest
from brain_service.inference.replay import RecordedStep
from brain_service.settings import CaptureSettings

Scenario = Callable[[EpisodeStore, Recorder, str], Awaitable[None]]


def run(folder: Path, scenario: Scenario) -> tuple[list[dict[str, Any]], Recorder]:
    """Run a scenario on a store and return the episode's steps and the recorder afterwards."""
    store = EpisodeStore(folder, CaptureSettings())
    store.start()
    episode_id = store.create({}).episode_id

    async def whole() -> Recorder:
        async with Recorder(store) as recorder:
            await scenario(store, recorder, episode_id)
        return recorder

    recorder = asyncio.run(whole())
    steps = store.steps(episode_id)
    store.close()
    return steps, recorder


def answer(
    recorder: Recorder, episode_id: str | None, step: int, session: str = "s", **fields: Any
) -> tuple[str, ...]:
    """Tell the recorder that a step was answered with an action equal to its index; return the warnings."""
    request = InferRequest(session, {"state": [float(step)]}, step, **fields)
    action = np.full(1, step, np.float32)
    reply = InferReply({"command": action}, step, "m", "jax-cpu", step, {}, chunk=action[None], bucket=4, row=2)
    return recorder.answered(episode_id, request, reply)


def test_a_step_is_completed_by_the_request_after_it(tmp_path: Path) -> None:
    async def scenario(_: EpisodeStore, recorder: Recorder, episode_id: str) -> None:
        for step in range(4):
            answer(recorder, episode_id, step, reward=step / 4, executed_action={"command": [9.0]})
            answer(recorder, episode_id, step, reward=7.0)  # a repeated request: the same answer, nothing new

    steps, recorder = run(tmp_path, scenario)
    assert [step["action"]["command"] for step in steps] == [[0.0], [1.0], [2.0], [3.0]]
    assert [step["reward"] for step in steps] == [0.25, 0.5, 0.75, 0.0]
    assert [step.get("executed_action") for step in steps] == [{"command": [9.0]}] * 3 + [None]
    assert steps[2]["step_metadata"]["policy"] == {
        "model_id": "m",
        "backend": "jax-cpu",
        "state_step": 2,
        "bucket": 4,
        "row": 2,
    }
    assert recorder.failed_steps == 0


def test_ending_the_session_or_recording_no_more_writes_what_was_held(tmp_path: Path) -> None:
    async def scenario(store: EpisodeStore, recorder: Recorder, episode_id: str) -> None:
        answer(recorder, episode_id, 0)
        answer(recorder, None, 1, reward=0.5)  # recorded no more: step 0 gets its reward, step 1 is not kept
        answer(recorder, None, 2)
        answer(recorder, episode_id, 3)
        recorder.release("s")
        recorder.release("s")
        await recorder.finish(episode_id)
        assert store.get(episode_id)["steps"] == 2

    steps, _ = run(tmp_path, scenario)
    assert [(step["action"]["command"], step["reward"]) for step in steps] == [([0.0], 0.5), ([3.0], 0.0)]


def test_a_reward_that_was_not_told_is_recorded_as_such(tmp_path: Path) -> None:
    async def scenario(_: EpisodeStore, recorder: Recorder, episode_id: str) -> None:
        for step, reward in enumerate((None, None, 0.0)):
            answer(recorder, episode_id, step, reward=reward)

    steps, _ = run(tmp_path, scenario)
    assert [step["reward"] for step in steps] == [0.0, 0.0, 0.0]
    given = [step["step_metadata"]["policy"].get("reward_given", True) for step in steps]
    assert given[:2] == [False, True]
    read = [RecordedStep.of(step) for step in steps]
    assert [step.reward for step in read if step][:2] == [None, 0.0]


def test_a_step_that_does_not_follow_gets_no_reward_of_another(tmp_path: Path) -> None:
    async def scenario(_: EpisodeStore, recorder: Recorder, episode_id: str) -> None:
        answer(recorder, episode_id, 5)
        answer(recorder, episode_id, 0, reward=1.0)  # the session was reset: this reward belongs to nobody

    steps, _ = run(tmp_path, scenario)
    assert [step["reward"] for step in steps] == [0.0, 0.0]


def test_what_cannot_be_recorded_is_counted_and_said(tmp_path: Path) -> None:
    async def scenario(store: EpisodeStore, recorder: Recorder, episode_id: str) -> None:
        answer(recorder, "none-such", 0, session="other")
        answer(recorder, episode_id, 0)
        await recorder.finish(episode_id)
        recorder.release("other")
        store.end(episode_id)
        answer(recorder, episode_id, 1)

    steps, recorder = run(tmp_path, scenario)
    assert len(steps) == 1
    assert recorder.failed_steps == 2
    assert "ended" in recorder.last_error


async def until_failed(recorder: Recorder, steps: int) -> None:
    async with asyncio.timeout(30):
        while recorder.failed_steps < steps:  # noqa: ASYNC110  (nothing tells of a failure)
            await asyncio.sleep(0.01)


def test_the_next_answer_says_once_that_steps_of_its_session_were_lost(tmp_path: Path) -> None:
    async def scenario(store: EpisodeStore, recorder: Recorder, episode_id: str) -> None:
        store.append(episode_id, [StepIn({"state": [0.0]}, {"command": [0.0]})])
        store.end(episode_id)
        assert answer(recorder, episode_id, 0) == ()
        assert answer(recorder, episode_id, 1) == ()
        await until_failed(recorder, 1)
        assert answer(recorder, None, 0, session="other") == (), "another session lost nothing"
        (warning,) = answer(recorder, episode_id, 2)
        assert warning.startswith("not recorded: 1 steps; conflict: episode") and "ended" in warning
        await until_failed(recorder, 2)
        (warning,) = answer(recorder, None, 3)
        assert warning.startswith("not recorded: 1 steps")
        await until_failed(recorder, 3)
        recorder.release("s")
        assert answer(recorder, None, 0) == (), "a session that begins anew is told nothing of the one before"

    run(tmp_path, scenario)


def test_a_full_medium_is_a_warning_and_what_fits_again_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, full = EpisodeStore.append, [True]

    def refuses_while_full(*args: Any) -> Any:
        if full[0]:
            raise UnavailableError("the medium is full: 0 bytes are free")
        return append(*args)

    monkeypatch.setattr(EpisodeStore, "append", refuses_while_full)

    async def scenario(_: EpisodeStore, recorder: Recorder, episode_id: str) -> None:
        for step in range(3):
            assert answer(recorder, episode_id, step) == ()
        await until_failed(recorder, 2)
        full[0] = False
        (warning,) = answer(recorder, episode_id, 3)
        assert warning.startswith("not recorded: 2 steps; unavailable: episode") and "full" in warning
        assert answer(recorder, episode_id, 4) == ()

    steps, recorder = run(tmp_path, scenario)
    assert [step["step_metadata"]["policy"]["state_step"] for step in steps] == [2, 3, 4]
    assert recorder.failed_steps == 2


def test_a_step_that_is_refused_takes_no_other_along(tmp_path: Path) -> None:
    async def scenario(_: EpisodeStore, recorder: Recorder, episode_id: str) -> None:
        for step in range(6):
            request = InferRequest("s", {"state": [1.0] * (2 if step == 3 else 1)}, step)
            reply = InferReply(
                {"command": np.ones(1, np.float32)}, step, "m", "b", step, {}, chunk=np.ones((1, 1))
            )
            recorder.answered(episode_id, request, reply)

    steps, recorder = run(tmp_path, scenario)
    assert len(steps) == 5
    assert recorder.failed_steps == 1
    assert "state" in recorder.last_error


def test_a_defect_in_one_append_ends_no_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = EpisodeStore.append
    met: list[Any] = []

    def fails_once(*args: Any) -> Any:
        if not met:
            met.append(args)
            raise OSError("transport endpoint is not connected")
        return append(*args)

    monkeypatch.setattr(EpisodeStore, "append", fails_once)

    async def scenario(_: EpisodeStore, recorder: Recorder, episode_id: str) -> None:
        for step in range(3):
            answer(recorder, episode_id, step)
            async with asyncio.timeout(10):
                await recorder.finish(episode_id)

    steps, recorder = run(tmp_path, scenario)
    assert (len(steps), recorder.failed_steps, recorder.last_error) == (
        2,
        1,
        "transport endpoint is not connected",
    )


def test_an_end_waits_for_its_own_steps_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    append = EpisodeStore.append

    def stalls(store: EpisodeStore, episode_id: str, steps: Any) -> Any:
        if store.get(episode_id)["metadata"].get("robot_id") == "stalled":
            assert gate.wait(10)
        return append(store, episode_id, steps)

    monkeypatch.setattr(EpisodeStore, "append", stalls)

    async def scenario(store: EpisodeStore, recorder: Recorder, episode_id: str) -> None:
        stalled = store.create({"robot_id": "stalled"}).episode_id
        answer(recorder, stalled, 0, session="other")
        recorder.release("other")
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            await recorder.finish(episode_id)
        gate.set()

    run(tmp_path, scenario)


def test_what_waits_for_a_stalled_medium_is_bounded_in_bytes(tmp_path: Path) -> None:
    frame = "x" * 10**7

    async def scenario(_: EpisodeStore, recorder: Recorder, episode_id: str) -> None:
        # Nothing is awaited in between, so nothing is written: as if the medium stood still.
        for step in range(9):
            request = InferRequest("s", {"note": frame}, step)
            action = np.zeros(1, np.float32)
            reply = InferReply({"command": action}, step, "m", "jax-cpu", step, {}, chunk=action[None])
            recorder.answered(episode_id, request, reply)
        assert recorder.failed_steps == 2
        assert "6 steps of 60000000 bytes" in recorder.last_error

    run(tmp_path, scenario)
