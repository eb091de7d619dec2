"""What an operator wants to know later: the last few hundred events, in memory and in `events.jsonl`.

Models that came and went, jobs that ended, a medium that filled up, a supply that was too weak. Not the log: that
tells everything, this what matters.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from brain_service.durable import write_atomic

__all__ = ["EventRing", "Kind", "Level", "OperatorEvent"]

Kind = Literal["daemon", "model", "backend", "job", "learning", "capture", "machine"]
Level = Literal["info", "warning", "error"]

KEPT = 200
SAME_WITHIN_S = 600.0
LOOK_BACK = 20
MAX_TEXT = 400


class OperatorEvent(msgspec.Struct, frozen=True):
    """One event. `times` counts how often it happened within minutes, `t_ns` (Unix time) is the last time."""

    seq: int
    t_ns: int
    kind: Kind
    level: Level
    text: str
    times: int = 1
    job_id: str | None = None


class EventRing:
    """The last `KEPT` events. Thread-safe; `add` writes a line to a file and never fails for a medium that does.

    A line is written without waiting for the medium: a power cut may take the last seconds of them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._lines = 0
        # The first line of a process begins a new one: the last of the process before may be torn.
        self._begin = b"\n"
        self._events: dict[int, OperatorEvent] = {}
        for event in _read(path):
            self._lines += 1
            self._put(event)
        self._seq = max(self._events, default=0)

    def add(self, kind: Kind, level: Level, text: str, job_id: str | None = None) -> OperatorEvent:
        """Take in an event; one that happened minutes ago already is counted up instead of told again."""
        text = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."
        now_ns = time.time_ns()
        with self._lock:
            recent = list(self._events.values())[-LOOK_BACK:]
            same = next((e for e in recent if (e.kind, e.text, e.job_id) == (kind, text, job_id)), None)
            self._seq += 1
            times = 1
            if same is not None and abs(now_ns - same.t_ns) < SAME_WITHIN_S * 1e9:
                times = same.times + 1
            event = OperatorEvent(self._seq, now_ns, kind, level, text, times, job_id)
            self._put(event)
            self._write(event)
        return event

    def latest(self, count: int = KEPT) -> list[dict[str, Any]]:
        """Return the newest events, newest first, JSON-ready."""
        with self._lock:
            found = list(self._events.values())[-count:]
        return [msgspec.to_builtins(event) for event in reversed(found)]

    @property
    def seq(self) -> int:
        """Number of the newest event; it grows with each."""
        return self._seq

    def _put(self, event: OperatorEvent) -> None:
        if event.times > 1:
            # Read back from the file, the count before this one stands there too.
            before = (event.kind, event.text, event.job_id, event.times - 1)
            for seq in [s for s, e in self._events.items() if (e.kind, e.text, e.job_id, e.times) == before]:
                del self._events[seq]
        self._events[event.seq] = event
        while len(self._events) > KEPT:
            del self._events[next(iter(self._events))]

    def _write(self, event: OperatorEvent) -> None:
        # What cannot be written is in memory, and that the medium fails is an event itself.
        with contextlib.suppress(OSError):
            if self._lines >= 4 * KEPT:
                kept = b"".join(msgspec.json.encode(event) + b"\n" for event in self._events.values())
                write_atomic(self._path, kept)
                self._lines = len(self._events)
            else:
                with self._path.open("ab") as file:
                    file.write(self._begin + msgspec.json.encode(event) + b"\n")
                self._lines += 1
            self._begin = b""


def _read(path: Path) -> Iterator[OperatorEvent]:
    """Yield what the file holds; a line that a power cut tore is left out."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            yield msgspec.json.decode(line, type=OperatorEvent)
