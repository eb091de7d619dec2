"""What the daemon runs: episode store, router, job table and runner, opened and closed as one."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request

from brain_service.api.activation import watch_activations
from brain_service.api.door import Arrivals
from brain_service.api.learning import watch_triggers
from brain_service.api.observer import Observer
from brain_service.api.recording import Recorder
from brain_service.api.token_file import TokenFile
from brain_service.audit import AuditLog
from brain_service.dashboard import Asset, load_assets
from brain_service.episodes.store import EpisodeStore
from brain_service.health.checks import lost_history
from brain_service.health.vitals import Vitals, open_vitals
from brain_service.inference.router import InferenceRouter
from brain_service.jobs.external import ExternalRunner
from brain_service.jobs.runner import RunnerProcess
from brain_service.jobs.table import JobTable
from brain_service.metrics import Growing
from brain_service.settings import Settings
from brain_service.tracing import Tracing

__all__ = ["Services", "ServicesDep", "open_services"]

log = logging.getLogger(__name__)

_RETRY_S = 1.0


@dataclass(frozen=True)
class Services:
    """The daemon's parts; routes receive this and keep no state of their own."""

    settings: Settings
    store: EpisodeStore
    router: InferenceRouter
    recorder: Recorder
    jobs: JobTable
    runner: RunnerProcess | ExternalRunner
    arrivals: Arrivals
    vitals: Vitals
    observer: Observer
    page: Mapping[str, Asset]
    started_ns: int
    audit: AuditLog
    tokens: TokenFile | None = None
    # Of inference workers: models come and go, each with a count of its own.
    restarts: Growing = field(default_factory=Growing)
    safe_mode: str = ""
    tracing: Tracing | None = None


@contextlib.asynccontextmanager
async def open_services(
    settings: Settings, tokens: TokenFile | None = None, *, audit: AuditLog | None = None, safe_mode: str = ""
) -> AsyncIterator[Services]:
    """Start every part, capture first, and stop them in reverse on exit.

    The router loads its model in the background: capture never waits for it. With `safe_mode`, a reason, it loads
    none, and no runner is started.

    Raises:
        ConfigError: the directory of episodes cannot be made or written, or the page's files are missing,
            or what traces need is not installed.
    """
    started_ns = time.time_ns()
    tracing = await asyncio.to_thread(Tracing.of, settings, "brain")
    page = await asyncio.to_thread(load_assets)
    async with contextlib.AsyncExitStack() as stack:
        if tracing is not None:
            stack.push_async_callback(asyncio.to_thread, tracing.close)
        store = EpisodeStore(
            settings.episodes_dir,
            settings.capture,
            database=settings.database,
            retention=settings.retention,
            datasets_dir=settings.datasets_dir,
        )
        await asyncio.to_thread(store.start)
        stack.push_async_callback(asyncio.to_thread, store.close)
        _background(stack, _make_when_there_is_room(settings.episodes_dir))
        if history := await asyncio.to_thread(lost_history, settings.database, started_ns):
            log.warning(history)
        # Lazily: where its file cannot be used, jobs are refused with the reason, and all the rest goes on.
        jobs = JobTable(settings.database, lazily=True)
        stack.push_async_callback(asyncio.to_thread, jobs.close)
        recorder = Recorder(store)
        router = InferenceRouter(
            settings.models_dir, settings.inference, settings.cache_dir, recorder.release, settings.sessions_dir
        )
        await router.start(safe_mode)
        stack.push_async_callback(router.close)
        runner = _runner(settings)
        if not safe_mode:
            await asyncio.to_thread(runner.start)
        stack.push_async_callback(asyncio.to_thread, runner.stop)
        await stack.enter_async_context(recorder)
        if not safe_mode:
            _background(stack, watch_activations(jobs, router, settings.jobs.poll_interval_s))
            _background(stack, watch_triggers(settings, jobs, store, router))
        vitals = await stack.enter_async_context(open_vitals(settings.data_dir, settings.gates.sysfs))
        observer = await asyncio.to_thread(Observer, settings, store, router, jobs, runner)
        _background(stack, observer.run())
        arrivals = Arrivals(settings.capture.max_queued_bytes)
        yield Services(
            *(settings, store, router, recorder, jobs, runner, arrivals),
            *(vitals, observer, page, started_ns),
            audit=audit or AuditLog(settings.data_dir),
            tokens=tokens,
            safe_mode=safe_mode,
            tracing=tracing,
        )


def _runner(settings: Settings) -> RunnerProcess | ExternalRunner:
    if settings.jobs.runner == "external":
        return ExternalRunner(settings.jobs_dir)
    return RunnerProcess(settings.data_dir, settings.as_environment())


async def _make_when_there_is_room(directory: Path) -> None:
    """Make the directory that a start on a full disk found no room for; no other part makes it again."""
    while not await asyncio.to_thread(directory.is_dir):
        await asyncio.sleep(_RETRY_S)
        with contextlib.suppress(OSError):
            # Without parents: a data directory whose medium is gone is not made anew on another one.
            await asyncio.to_thread(directory.mkdir)


def _background(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` beside the rest until the stack is left."""
    stack.push_async_callback(_cancel, asyncio.create_task(work))


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _services(request: Request) -> Services:
    # Not a plain function: those FastAPI runs in a thread, at the price of two switches a request.
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
