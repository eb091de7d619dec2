"""One model in service: its arena, which outlives workers, and the worker that runs it now."""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brain_service.errors import BrainError, CorruptDataError, UnavailableError
from brain_service.export.bundle import Bundle, Manifest
from brain_service.inference.arena import Arena, Layout, Row
from brain_service.inference.backends import BACKENDS
from brain_service.inference.client import Ticket, WorkerClient
from brain_service.inference.protocol import PROTOCOL_VERSION
from brain_service.settings import InferenceSettings

__all__ = ["Decision", "ServedModel"]

log = logging.getLogger(__name__)

_ROWS_PER_SESSION = 2
"""A reset or ended session's row may still be busy while its successor begins on another."""

_STABLE_S = 10.0
_BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a backend is used for a model, or why not."""

    device: str
    backend: str
    used: bool
    reason: str


class ServedModel:
    """A loaded model: rows for sessions, and a worker that is started again when it dies."""

    def __init__(self, bundle: Bundle, settings: InferenceSettings, cache_dir: Path) -> None:
        self.manifest: Manifest = bundle.manifest
        self.backend = ""
        self.decisions: list[Decision] = []
        self.restarts = 0
        self.sessions = 0
        self.last_error: str | None = None
        self._path = bundle.path
        self._settings = settings
        self._cache_dir = cache_dir
        capacity = settings.max_sessions * _ROWS_PER_SESSION
        self._arena = Arena.create(Layout.of(bundle.manifest), capacity)
        self._free = list(range(capacity - 1, -1, -1))
        self._worker: WorkerClient | None = None
        self._started_s = 0.0
        self._quick_deaths = 0
        self._restarting: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def load(cls, path: Path, settings: InferenceSettings, cache_dir: Path) -> "ServedModel":
        """Verify the bundle at `path` and start it on the first backend of the settings that passes.

        Raises:
            NotFoundError: there is no such bundle.
            CorruptDataError: the bundle does not verify, or fails the golden check on every backend.
            UnavailableError: no backend can run it; the message names each with its reason.
        """
        bundle = await asyncio.to_thread(Bundle.open, path)
        model = await asyncio.to_thread(cls, bundle, settings, cache_dir)
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(model.close)
            await model._start()
            undo.pop_all()
        return model

    @property
    def model_id(self) -> str:
        """The bundle's id."""
        return self.manifest.model_id

    @property
    def ready(self) -> bool:
        """Whether a worker is up that would take a step now."""
        return self._worker is not None and self._worker.alive

    def take_row(self) -> Row:
        """Return a zeroed row for a session.

        Raises:
            UnavailableError: all rows are in use, or waited for until a late step lets go of them.
        """
        if not self._free:
            raise UnavailableError("no free state row; steps of ended sessions are still running, retry")
        row = self._arena.row(self._free.pop())
        row.clear()
        self.sessions += 1
        return row

    def give_back(self, row: Row, ticket: Ticket | None) -> None:
        """Free a session's row once its last step no longer touches it."""
        self.sessions -= 1
        if ticket is None:
            self._free.append(row.index)
        else:
            ticket.when_settled(lambda: self._free.append(row.index))

    def submit(self, row: Row, read_slot: int, deadline_ns: int) -> Ticket:
        """Run one step of `row`; see `WorkerClient.submit`.

        Raises:
            UnavailableError: no worker is up; one is being started.
        """
        if self._worker is None or not self._worker.alive:
            raise UnavailableError(
                f"the worker of model {self.model_id} is being started again"
                f"{f' ({self.last_error})' if self.last_error else ''}; retry this step"
            )
        return self._worker.submit(row.index, read_slot, deadline_ns)

    def status(self) -> dict[str, Any]:
        """Return what /models and /health show of a loaded model."""
        worker = self._worker if self.ready else None
        return {
            "model_id": self.model_id,
            "state": "serving" if worker else "restarting",
            "backend": self.backend,
            "sessions": self.sessions,
            "worker_pid": worker.pid if worker else None,
            "worker_restarts": self.restarts,
            "golden_parity": worker.report.get("parity") if worker else None,
            "step_us": worker.report.get("step_us") if worker else None,
            "load_s": worker.report.get("load_s") if worker else None,
            "batches": worker.report.get("batches") if worker else None,
            "dropped_steps": worker.dropped if worker else None,
            "last_error": self.last_error,
            "why": [
                {"device": d.device, "backend": d.backend, "used": d.used, "reason": d.reason}
                for d in self.decisions
            ],
        }

    async def close(self) -> None:
        """Stop the worker and free the shared memory."""
        self._closed = True
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.gather(self._restarting, return_exceptions=True)
        if self._worker is not None:
            await self._worker.close()
        self._arena.close()

    async def _start(self) -> None:
        self.decisions = []
        failures: list[BrainError] = []
        for device in self._settings.backends:
            reason = self._unusable(device)
            if reason is None:
                try:
                    self._worker = await self._start_worker(device)
                except BrainError as error:
                    failures.append(error)
                    reason = error.detail
                else:
                    self.backend = BACKENDS[device].name
                    self.decisions.append(Decision(device, self.backend, True, "first in order that passed"))
                    self._started_s = time.monotonic()
                    return
            name = BACKENDS[device].name if device in BACKENDS else device
            self.decisions.append(Decision(device, name, False, reason))
        why = "; ".join(f"{decision.device}: {decision.reason}" for decision in self.decisions)
        kind = CorruptDataError if any(isinstance(f, CorruptDataError) for f in failures) else UnavailableError
        raise kind(f"no backend runs model {self.model_id}: {why}") from (failures[-1] if failures else None)

    def _unusable(self, device: str) -> str | None:
        entry = BACKENDS.get(device)
        if entry is None:
            return f"this version has no backend for it, only for {', '.join(BACKENDS)}"
        if entry.form not in self.manifest.files or entry.parity not in self.manifest.parity:
            return f"the bundle holds no {entry.form}; export the checkpoint for {entry.name}"
        return None

    async def _start_worker(self, device: str) -> WorkerClient:
        order = {
            "protocol": PROTOCOL_VERSION,
            "bundle": str(self._path),
            "backend": device,
            "capacity": self._arena.capacity,
            "cache_dir": str(self._cache_dir),
        }
        return await WorkerClient.start(
            BACKENDS[device],
            order,
            self._arena.fd,
            timeout_s=self._settings.worker_start_timeout_s,
            hang_s=self._settings.worker_hang_s,
            max_queued=self._settings.max_queued_steps,
            on_lost=self._on_lost,
        )

    def _on_lost(self, reason: str) -> None:
        self.last_error = reason
        if not self._closed:
            self._restarting = asyncio.get_running_loop().create_task(self._restart())

    async def _restart(self) -> None:
        if time.monotonic() - self._started_s >= _STABLE_S:
            self._quick_deaths = 0
        while not self._closed:
            await asyncio.sleep(_BACKOFF_S[min(self._quick_deaths, len(_BACKOFF_S) - 1)])
            self._quick_deaths += 1
            self.restarts += 1
            try:
                await self._start()
            except BrainError as error:
                self.last_error = error.detail
                log.error("cannot restart the worker of model %s: %s", self.model_id, error.detail)
            else:
                log.warning("worker of model %s started again", self.model_id)
                return
