"""The audit log: who asked for what, when, and what came of it; one JSON line an action of an operator.

`<data_dir>/audit.jsonl` is appended to and flushed to the medium before the action is answered. Full, it becomes
`audit.jsonl.1`, and so on up to `.4`; what is older goes. It never holds a body, a token or a query.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from brain_service.durable import append_whole, fsync_directory

__all__ = ["AuditLog"]

log = logging.getLogger(__name__)

FILE = "audit.jsonl"
MAX_BYTES = 2 * 1024**2  # some ten thousand actions
KEPT = 4
MAX_TEXT = 200
TAIL_BYTES = 64 * 1024


class AuditLog:
    """The log of one data directory. Thread-safe; methods block on the medium."""

    def __init__(self, data_dir: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path = data_dir / FILE
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._next: int | None = None
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why the last action could not be noted, or nothing."""
        return self._problem

    def append(self, who: str, via: str, action: str, target: str, outcome: int | None, **more: Any) -> None:
        """Note an action, durably: who did it and from where, what to which thing, and the HTTP status it got.

        `outcome` None: it was never answered. A medium that refuses is logged and held in `problem`: an operator
        must be able to stop a robot's training though the card is full.
        """
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "who": who[:MAX_TEXT],
            "via": via[:MAX_TEXT],
            "action": action[:MAX_TEXT],
            "target": target[:MAX_TEXT],
            "outcome": outcome,
            **more,
        }
        with self._lock:
            try:
                number = self._begin()
                self._write(orjson.dumps({"n": number, **entry}) + b"\n")
                self._next = number + 1
                self._problem = ""
            except OSError as error:
                self._problem = f"the audit log {self._path} cannot be written: {error.strerror}; free some space"
                log.error(self._problem, extra=entry)

    def note_tokens(self, count: int, refused: str) -> None:
        """Note that the tokens file was read again: `count` tokens hold, or why it was refused."""
        more = {"detail": refused[:MAX_TEXT]} if refused else {"tokens": count}
        self.append(
            "whoever writes tokens_file", "file", "reload-tokens", "tokens", 422 if refused else 200, **more
        )

    def page(self, limit: int, before: int | None = None) -> tuple[list[dict[str, Any]], int | None]:
        """Return up to `limit` entries, newest first, of those numbered below `before`; and where the next page
        begins, None where there is none.

        Raises:
            OSError: the files cannot be read.
        """
        found: list[dict[str, Any]] = []
        with self._lock:
            for entry in self._newest_first():
                if before is None or entry["n"] < before:
                    found.append(entry)
                    if len(found) > limit:
                        break
        return found[:limit], found[limit - 1]["n"] if len(found) > limit else None

    def _newest_first(self) -> Iterator[dict[str, Any]]:
        for path in (self._path, *(self._old(number) for number in range(1, KEPT + 1))):
            try:
                lines = path.read_bytes().splitlines()
            except FileNotFoundError:
                continue
            yield from (entry for line in reversed(lines) if (entry := _parse(line)) is not None)

    def _begin(self) -> int:
        """Return the number of the next entry, after what an earlier process left half written was ended."""
        if self._next is not None:
            return self._next
        with contextlib.suppress(FileNotFoundError), self._path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if size and file.read(1) != b"\n":
                file.write(b"\n")
        newest = next(self._newest_first(), None)
        return 1 if newest is None else int(newest["n"]) + 1

    def _write(self, line: bytes) -> None:
        # Kept shut in between: an action comes now and then, and a log that was moved away is begun anew.
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            size = os.fstat(fd).st_size
            if size and size + len(line) > self._max_bytes:
                self._rotate()
                os.close(fd)
                fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
                size = 0
            append_whole(fd, line)
        finally:
            os.close(fd)
        if size == 0:
            fsync_directory(self._path.parent)

    def _rotate(self) -> None:
        for number in range(KEPT - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._old(number).replace(self._old(number + 1))
        self._path.replace(self._old(1))

    def _old(self, number: int) -> Path:
        return self._path.with_name(f"{FILE}.{number}")


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = orjson.loads(line)
    except ValueError:
        return None  # cut short by a power cut
    return entry if isinstance(entry, dict) and type(entry.get("n")) is int else None
