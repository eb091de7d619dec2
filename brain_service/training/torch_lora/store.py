"""The adapters of a robot: one folder a run, and an audit of what became of each.

    adapters/<run>/adapters.safetensors, adapters.json   what was trained, and for which base
    adapters/<run>/state.safetensors, logs/              where the training stands, its curves
    adapters/audit.jsonl                                 one line an event, flushed to the medium

There is no link to the current ones: the active model's manifest names the adapters that were merged into it, and
it alone says which are current. Those that were promoted before are history, the others candidates.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson

from brain_service.durable import append_whole, fsync_directory, make_directory
from brain_service.errors import BrainError, ConflictError, NotFoundError, UnavailableError
from brain_service.training.torch_lora.document import AdapterDocument, read_document

__all__ = ["AdapterStore", "StoredAdapters"]

AUDIT = "audit.jsonl"
Place = Literal["candidate", "current", "history", "unfinished", "unreadable"]


@dataclass(frozen=True)
class StoredAdapters:
    """One run's adapters; `problem` tells why they cannot be read."""

    run: str
    place: Place
    sha256: str = ""
    base: str = ""
    steps: int = 0
    rank: int = 0
    size_bytes: int = 0
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


class AdapterStore:
    """`adapters_dir`. Methods block on the medium."""

    def __init__(self, adapters_dir: Path) -> None:
        self.folder = adapters_dir

    def path(self, run: str) -> Path:
        """Return the folder of a run's adapters.

        Raises:
            NotFoundError: there are none of that run; names those that are.
        """
        if run not in (runs := self._runs()):
            known = ", ".join(runs) or "none yet: brain lora train makes some"
            raise NotFoundError(f"no adapters of run {run!r}; there are {known}", field="run")
        return self.folder / run

    def document(self, run: str) -> AdapterDocument:
        """Return what is known of a run's adapters.

        Raises:
            NotFoundError: there are none of that run.
            CorruptDataError: their document cannot be read.
        """
        return read_document(self.path(run))

    @contextlib.contextmanager
    def hold(self, run: str) -> Iterator[None]:
        """Keep every other process from training, merging or promoting this run meanwhile; a kill gives it free.

        Raises:
            ConflictError: another one does.
            UnavailableError: the medium is full or read-only.
        """
        path = self.folder / f".{run}.lock"
        try:
            make_directory(self.folder)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise UnavailableError(f"{path}: {error.strerror}; make room, then start the run again") from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConflictError(
                    f"another process works on run {run!r}; wait for its end, then ask again"
                ) from error
            yield
        finally:
            os.close(fd)

    def entries(self, active_sha256: str | None) -> list[StoredAdapters]:
        """Return all adapters by run; `active_sha256` is that of the adapters in the active model, if any."""
        promoted = {line.get("sha256") for line in self.audit() if line.get("event") == "promoted"}
        found = []
        for run in self._runs():
            try:
                document = read_document(self.folder / run)
            except BrainError as error:
                unread: Place = "unfinished" if isinstance(error, NotFoundError) else "unreadable"
                found.append(StoredAdapters(run, unread, problem=error.detail))
                continue
            place: Place = "history" if document.sha256 in promoted else "candidate"
            if active_sha256 is not None and document.sha256 == active_sha256:
                place = "current"
            found.append(
                StoredAdapters(
                    run=run,
                    place=place,
                    sha256=document.sha256,
                    base=str(document.extra["base"]["name"]),
                    steps=document.steps,
                    rank=document.rank,
                    size_bytes=document.size_bytes,
                )
            )
        return found

    def run_of(self, sha256: str) -> str | None:
        """Return the run whose adapters have this hash, None where none has."""
        return next((each.run for each in self.entries(None) if each.sha256 == sha256), None)

    def note(self, event: str, run: str | None, sha256: str | None, who: str, **more: Any) -> None:
        """Append a line to the audit, durably: what happened to which adapters, by whom, on which figures.

        Raises:
            UnavailableError: the medium is full or read-only.
        """
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            "run": run,
            "sha256": sha256,
            "who": who,
            **more,
        }
        try:
            self._append(orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
        except OSError as error:
            raise UnavailableError(
                f"{self.folder / AUDIT}: {error.strerror}; make room, then ask again"
            ) from error

    def catch_up(self, active_sha256: str | None) -> None:
        """Note which adapters are current now where the audit does not know: the daemon rolls back by itself, and
        an operator may activate what he likes.

        Raises:
            UnavailableError: the medium is full or read-only.
        """
        known = [line for line in self.audit() if line.get("event") in ("promoted", "found")]
        if active_sha256 != (known[-1].get("sha256") if known else None):
            run = None if active_sha256 is None else self.run_of(active_sha256)
            self.note("found", run, active_sha256, "whoever activated the model that serves now")

    def _append(self, line: bytes) -> None:
        make_directory(self.folder)
        fd = os.open(self.folder / AUDIT, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            size = os.fstat(fd).st_size
            # What a power cut left half written is ended, so that it cannot swallow this line.
            if size and os.pread(fd, 1, size - 1) != b"\n":
                line = b"\n" + line
            append_whole(fd, line)
        finally:
            os.close(fd)
        fsync_directory(self.folder)

    def audit(self) -> list[dict[str, Any]]:
        """Return the audit's lines, oldest first; one that a power cut tore is left out."""
        try:
            lines = (self.folder / AUDIT).read_bytes().splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(orjson.JSONDecodeError):
                found.append(orjson.loads(line))
        return [line for line in found if isinstance(line, dict)]

    def _runs(self) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.folder) if entry.is_dir())
        except OSError:
            return []
