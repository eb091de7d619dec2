"""One model in service: the sessions' memory, which outlives workers, and the backends that can run it."""

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from brain_service.errors import UnavailableError
from brain_service.export.bundle import Bundle, Manifest
from brain_service.inference.arena import Arena, Layout, Row
from brain_service.inference.backends import BackendEntry
from brain_service.inference.client import Ticket, WorkerClient, WorkerLostError
from brain_service.inference.crew import Crew
from brain_service.inference.engine import Report
from brain_service.inference.protocol import PROTOCOL_VERSION
from brain_service.settings import InferenceSettings

__all__ = ["ServedModel"]

_ROWS_PER_SESSION = 2
"""A reset or ended session's row may still be busy while its successor begins on another."""


class ServedModel:
    """A loaded model: rows for sessions, and a crew of backends of which one computes the steps.

    All workers map the same arena, so a step may run on any of them: a session's state is where it was.
    """

    def __init__(self, bundle: Bundle, settings: InferenceSettings, cache_dir: Path) -> None:
        self.manifest: Manifest = bundle.manifest
        self.layout = Layout.of(bundle.manifest)
        self.sessions = 0
        self._path = bundle.path
        self._settings = settings
        self._cache_dir = cache_dir
        capacity = settings.max_sessions * _ROWS_PER_SESSION
        try:
            # One row more than sessions get, for the crew's own measurement.
            self._arena = Arena.create(self.layout, capacity + 1)
        except OSError as error:
            raise UnavailableError(
                f"no shared memory for {settings.max_sessions} sessions of model {self.model_id}: {error}; "
                "lower inference.max_sessions or free memory"
            ) from error
        self._free = list(range(capacity - 1, -1, -1))
        self._crew = Crew(bundle, settings, cache_dir, self._launch, self._arena.row(capacity))

    @classmethod
    async def load(cls, path: Path, settings: InferenceSettings, cache_dir: Path) -> "ServedModel":
        """Verify the bundle at `path` and start it on the first backend of the settings that passes.

        Raises:
            NotFoundError: there is no such bundle.
            CorruptDataError: the bundle does not verify, or fails the golden check on every backend.
            UnavailableError: no backend can run it, the message names each with its reason; or no memory is left.
        """
        bundle = await asyncio.to_thread(Bundle.open, path)
        model = await asyncio.to_thread(cls, bundle, settings, cache_dir)
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(model.close)
            await model._crew.start()
            undo.pop_all()
        return model

    @property
    def model_id(self) -> str:
        """The bundle's id."""
        return self.manifest.model_id

    @property
    def ready(self) -> bool:
        """Whether a worker is up that would take a step now."""
        return self._crew.current is not None

    @property
    def backend(self) -> str:
        """Name of the backend that computes the steps, or did last."""
        return self._crew.backend

    @property
    def last_error(self) -> str | None:
        """The last failure of a backend in service."""
        return self._crew.last_error

    @property
    def deaths(self) -> int:
        """How many workers ended unasked, or were killed as hung."""
        return sum(engine.deaths for engine in self._crew.engines)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What every answer must say: which backend stands in for which, and why."""
        return self._crew.warnings

    def set_active(self, active: bool) -> None:
        """Say whether this is the active model: others keep no second backend and no device for themselves."""
        self._crew.set_active(active)

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
        engine = self._crew.current
        if engine is None or engine.worker is None:
            raise WorkerLostError(
                f"the worker of model {self.model_id} is being started again"
                f"{f' ({self.last_error})' if self.last_error else ''}; retry this step"
            )
        return engine.worker.submit(row.index, read_slot, deadline_ns)

    def status(self) -> dict[str, Any]:
        """Return what /models and /health show of a loaded model."""
        return {
            "model_id": self.model_id,
            "state": "serving" if self.ready else "restarting",
            "sessions": self.sessions,
            **self._crew.status(),
        }

    async def close(self) -> None:
        """Stop the workers and free the shared memory."""
        await self._crew.close()
        self._arena.close()

    async def _launch(self, entry: BackendEntry, on_lost: Report, on_slow: Report) -> WorkerClient:
        order = {
            "protocol": PROTOCOL_VERSION,
            "bundle": str(self._path),
            "backend": entry.name,
            "module": entry.module,
            "parity": entry.parity,
            "capacity": self._arena.capacity,
            "cache_dir": str(self._cache_dir),
        }
        if entry.python is not None:
            entry = replace(entry, python=str(self._settings.hailo_python))
        return await WorkerClient.start(
            entry,
            order,
            self._arena.fd,
            timeout_s=self._settings.worker_start_timeout_s,
            hang_s=self._settings.worker_hang_s,
            max_queued=self._settings.max_queued_steps,
            on_lost=on_lost,
            on_slow=on_slow,
        )
