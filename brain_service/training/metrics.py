"""A run's curves: `logs/metrics.jsonl` and an event file for TensorBoard, side by side.

Both are written once every `log_every` steps by the process that trains. A resumed run drops the lines after the
step that it goes on from; TensorBoard is told by a session-start event to do the same.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brain_service.durable import write_atomic
from brain_service.errors import UnavailableError

__all__ = ["MetricsLog", "read_metrics"]

FOLDER = "logs"
FILE = "metrics.jsonl"


class MetricsLog:
    """Appends numbers by step under a run's folder; a context manager.

    Raises:
        UnavailableError: the medium is full or read-only.
    """

    def __init__(self, run: Path, step: int) -> None:
        """Go on after `step`; what was written beyond it belongs to steps that are made again."""
        # It knows neither TensorFlow nor PyTorch, but its import still takes a while: for training only.
        from tensorboardX.event_file_writer import EventsWriter

        self.folder = run / FOLDER
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            kept = [line for line in read_metrics(run) if line["step"] <= step]
            write_atomic(self.folder / FILE, b"".join(_line(line) for line in kept))
            self._file = (self.folder / FILE).open("ab")
            # Its names count in seconds: two starts within one must not write over each other.
            self._events = EventsWriter(str(self.folder / "events"), f".{os.getpid()}.{time.time_ns()}")
        except OSError as error:
            raise UnavailableError(f"metrics in {self.folder}: {error}; make room, then start again") from error
        self._write_session_start(step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._events.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of one step to both files.

        Raises:
            UnavailableError: the medium is full or failing.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        parts = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=parts))
        try:
            self._file.write(_line({"step": step, **values}))
            self._file.flush()
            self._events.write_event(event)
            self._events.flush()
        except OSError as error:
            raise UnavailableError(f"metrics in {self.folder}: {error}; make room, then start again") from error

    def _write_session_start(self, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(wall_time=time.time(), step=step, session_log=start))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics in order; a line that a kill tore is left out."""
    path = run / FOLDER / FILE
    found = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in found if isinstance(line, dict) and isinstance(line.get("step"), int)]


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"
