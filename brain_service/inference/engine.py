"""One backend of one model: its worker, its circuit breaker, and why it is used or not."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psutil

from brain_service.errors import BrainError, CorruptDataError, UnavailableError
from brain_service.inference.backends import BackendEntry
from brain_service.inference.breaker import Breaker
from brain_service.inference.client import WorkerClient

__all__ = ["Engine", "Launch"]

log = logging.getLogger(__name__)

Report = Callable[[WorkerClient, str], None]
Launch = Callable[[BackendEntry, Report, Report], Awaitable[WorkerClient]]
"""`launch(entry, on_lost, on_slow)` starts a worker and returns it warm and checked; see `WorkerClient.start`."""

_GROWTH = 1.5
"""A worker over the limit from its start on is let grow by this factor: a fresh one would be no smaller."""

_REPLACE_REST_S = 30.0
_DRAIN_POLL_S = 0.005


class Engine:
    """A backend that can run a model here, or `obstacle`, why it never can.

    `on_change(failure)` is called whenever it comes up or goes down, with the reason where it failed;
    `on_slow(engine, reason)` when it is in trouble but runs. `cleared` says that sessions may move to it, `served`
    that it has computed steps for them; `name` is the backend's in answers; `deaths` counts workers that ended
    unasked.
    """

    def __init__(
        self,
        entry: BackendEntry,
        obstacle: str | None,
        launch: Launch,
        on_change: Callable[[str | None], None],
        on_slow: "Callable[[Engine, str], None]",
    ) -> None:
        self.entry = entry
        self.name = entry.name
        self.obstacle = obstacle
        self.breaker = Breaker()
        self.error: BrainError | None = None
        self.served = False
        self.cleared = False
        self.starts = 0
        self.deaths = 0
        self.worker: WorkerClient | None = None
        self._launch = launch
        self._on_change = on_change
        self._on_slow = on_slow
        self._least_bytes = 0
        self._replace_from_s = 0.0
        self._retired: dict[WorkerClient, asyncio.Task[None]] = {}

    @property
    def up(self) -> bool:
        """Whether a step would be taken now."""
        return self.worker is not None and self.worker.alive

    @property
    def due(self) -> bool:
        """Whether it is down and may be started now."""
        return not self.up and self.obstacle is None and self.breaker.wait_s == 0.0

    async def start(self) -> None:
        """Start a worker; a failure opens the breaker."""
        self.breaker.attempt()
        self.starts += 1
        try:
            self._take(await self._launched())
        except BrainError as error:
            self._fail(error)

    async def replace(self, reason: str) -> None:
        """Take a fresh worker in the place of the one that runs, between two steps; without one, that goes on."""
        log.warning("%s: %s; a fresh worker takes its place", self.name, reason)
        self.starts += 1
        old = self.worker
        try:
            fresh = await self._launched()
        except BrainError as error:
            self._replace_from_s = time.monotonic() + _REPLACE_REST_S
            log.error("%s: no fresh worker: %s", self.name, error.detail)
            return
        self._take(fresh)
        self._retire(old)

    def stop(self) -> None:
        """Take no more steps; the worker ends once it has answered those that it has."""
        worker, self.worker = self.worker, None
        self._retire(worker)
        self._on_change(None)

    def give_up(self, reason: str) -> None:
        """Open the breaker and stop: the backend runs, but not as it should."""
        log.error("%s: %s", self.name, reason)
        self.breaker.fail(reason)
        worker, self.worker = self.worker, None
        self._retire(worker)
        self._on_change(reason)

    async def close(self) -> None:
        """Stop the worker and wait for its end, and for those that were replaced."""
        worker, self.worker = self.worker, None
        workers = [*self._retired, *([worker] if worker is not None else [])]
        retiring = list(self._retired.values())
        await asyncio.gather(*(each.close() for each in workers), *retiring, return_exceptions=True)

    async def leak(self, limit_bytes: int) -> str | None:
        """Tell whether the worker's own memory (without shared pages) has grown over the limit, and to what."""
        worker = self.worker
        if worker is None or not worker.alive or time.monotonic() < self._replace_from_s:
            return None
        used = await asyncio.to_thread(_private_bytes, worker.pid)
        self._least_bytes = min(used, self._least_bytes) if self._least_bytes else used
        if used <= max(limit_bytes, _GROWTH * self._least_bytes):
            return None
        return f"the worker uses {used / 1e6:.0f} MB, the limit is {limit_bytes / 1e6:.0f} MB"

    async def _launched(self) -> WorkerClient:
        worker = await self._launch(self.entry, self._lost, self._slow)
        if not worker.alive:
            await worker.close()
            raise UnavailableError(f"{self.name}: the worker died as soon as it was loaded; see its log")
        return worker

    def _take(self, worker: WorkerClient) -> None:
        self.worker = worker
        self.error = None
        # A worker may add to it that its device is simulated.
        self.name = worker.backend
        self._least_bytes = 0
        self.breaker.succeed()
        self._on_change(None)

    def _fail(self, error: BrainError) -> None:
        self.error = error
        # What does not verify or gives other numbers will not do better in a moment.
        self.breaker.fail(error.detail, lasting=isinstance(error, CorruptDataError))
        log.warning("%s: %s", self.name, error.detail)
        self._on_change(error.detail)

    def _lost(self, worker: WorkerClient, reason: str) -> None:
        if worker is self.worker:
            self.deaths += 1
            self.breaker.fail(reason)
            self._on_change(reason)

    def _slow(self, worker: WorkerClient, reason: str) -> None:
        if worker is self.worker:
            self._on_slow(self, reason)

    def _retire(self, worker: WorkerClient | None) -> None:
        if worker is not None:
            task = asyncio.get_running_loop().create_task(_close_when_idle(worker))
            self._retired[worker] = task
            task.add_done_callback(lambda _: self._retired.pop(worker))

    def status(self) -> dict[str, Any]:
        """Return what is known of the worker and the breaker."""
        worker = self.worker if self.up else None
        return {
            "worker_pid": worker.pid if worker else None,
            "step_us": worker.step_us if worker else None,
            "golden_parity": worker.report.get("parity") if worker else None,
            "load_s": worker.report.get("load_s") if worker else None,
            "telemetry": worker.report.get("telemetry") if worker else None,
            "batches": worker.report.get("batches") if worker else None,
            "dropped_steps": worker.dropped if worker else None,
            "breaker": self.breaker.state,
            "failures": self.breaker.failures,
            "retry_in_s": round(self.breaker.wait_s, 1),
        }


async def _close_when_idle(worker: WorkerClient) -> None:
    # A worker that never answers is killed by its own watchdog.
    while worker.alive and worker.busy:  # noqa: ASYNC110  (an event would be set and cleared at every step)
        await asyncio.sleep(_DRAIN_POLL_S)
    await worker.close()


def _private_bytes(pid: int) -> int:
    with contextlib.suppress(psutil.Error):
        memory = psutil.Process(pid).memory_info()
        return int(memory.rss - memory.shared)
    return 0
