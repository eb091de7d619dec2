"""What a job says while it runs: `jobs/<id>/events.jsonl`, appended by its worker, followed by readers.

A line is `{"t_ns": ..., "kind": "progress" | "metrics" | "stage" | "pause" | "log" | "state", ...}`. A reader's
position is a byte offset, so that it can go on where it stopped (Last-Event-ID of an event stream).
"""

import os
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

__all__ = ["Event", "EventKind", "EventLog", "read_events"]

EventKind = Literal["progress", "metrics", "stage", "pause", "log", "state"]

READ_BYTES = 1 << 20


class Event(NamedTuple):
    """One event and the byte offset right after it, from where reading goes on."""

    offset: int
    data: dict[str, Any]


class EventLog:
    """Appends events to a job's file, each with one write, so that processes may append side by side."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            # A killed worker left half a line: end it, so that it spoils no line but its own.
            os.write(self._fd, b"\n")

    def append(self, kind: EventKind, **data: Any) -> None:
        """Write one event with the time now.

        Raises:
            OSError: the medium is full or failing.
        """
        line = orjson.dumps(
            {"t_ns": time.time_ns(), "kind": kind, **data},
            option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE,
        )
        os.write(self._fd, line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_events(path: Path, offset: int = 0) -> list[Event]:
    """Return the events after a byte offset, at most about a mebibyte of them; a missing file has none.

    Half a line at the end is left for the next call; a line that a kill tore is skipped.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(READ_BYTES)
            while data and b"\n" not in data and (more := file.read(READ_BYTES)):
                data += more
    except FileNotFoundError:
        return []
    events = []
    for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
        offset += len(line)
        try:
            document = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(document, dict):
            events.append(Event(offset, document))
    return events
