"""A router with real workers on uvloop, as in the daemon; whatever blocks the loop fails the test."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import uvloop
from blockbuster import blockbuster_ctx

from brain_service.errors import BrainError
from brain_service.inference import InferenceRouter, InferReply, InferRequest
from brain_service.settings import InferenceSettings
from tests.inference.toy import Floats, as_tree

PATIENCE_S = 60.0


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a test's scenario on the daemon's kind of event loop, with BlockBuster watching."""

    async def watched() -> None:
        with blockbuster_ctx("brain_service"):
            await scenario

    uvloop.run(watched())


@contextlib.asynccontextmanager
async def serving(
    models_dir: Path, cache_dir: Path, activate: str | None = None, **settings: Any
) -> AsyncIterator[InferenceRouter]:
    """A started router; with `activate` it serves that model. Deadlines are generous, canaries off unless set."""
    sessions_dir = settings.pop("sessions_dir", None)
    options = {"backends": ("cpu",), "deadline_ms": 20_000.0, "canary_steps": 0} | settings
    router = InferenceRouter(models_dir, InferenceSettings(**options), cache_dir, sessions_dir=sessions_dir)
    await router.start()
    try:
        if activate is not None:
            await router.activate(activate)
        yield router
    finally:
        await router.close()


async def ask(router: InferenceRouter, session_id: str, observation: Floats, **fields: Any) -> InferReply:
    """One `/infer` with a flat toy observation."""
    return await router.infer(InferRequest(session_id, as_tree(observation), **fields))


async def refused(router: InferenceRouter, session_id: str, observation: Floats, **fields: Any) -> BrainError:
    """The error that an `/infer` ends in."""
    try:
        reply = await ask(router, session_id, observation, **fields)
    except BrainError as error:
        return error
    raise AssertionError(f"answered {reply}")


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; a test that waits in vain fails."""
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        await asyncio.sleep(0.01)


def worker_pid(router: InferenceRouter, model_id: str | None = None) -> int:
    """Process id of the worker of `model_id`, or of the active model."""
    status = router.status()
    wanted = model_id or status["active_model"]
    (pid,) = [model["worker_pid"] for model in status["models"] if model["model_id"] == wanted]
    assert isinstance(pid, int), status
    return pid


@contextlib.contextmanager
def stopped(pid: int) -> Any:
    """Freeze a process (SIGSTOP), so that a step stays on its way; thaw it at the end if it still lives."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def is_gone(pid: int) -> bool:
    """Whether a process has ended (reaped or not)."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
