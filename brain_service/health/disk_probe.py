"""How long the medium takes to make one small write durable: asked rarely, by a thread that may wait for it."""

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

from brain_service.metrics import Histogram

__all__ = ["DiskProbe", "DiskView"]

PERIOD_S = 60.0
FIRST_S = 5.0  # a start has better things to write
_FILE = ".write-probe"
_BLOCK = b"\x00" * 4096


class DiskView(NamedTuple):
    """The last measurement in seconds (None before the first), for how long one waits now, and what went wrong."""

    latency_s: float | None
    waiting_s: float
    error: str


class DiskProbe:
    """Overwrites one block of a file of its own and waits for it (fdatasync); 6 MB a day at a probe a minute.

    The file keeps its size, so that no metadata has to be written along.
    """

    def __init__(self, folder: Path, period_s: float = PERIOD_S, first_s: float = FIRST_S) -> None:
        self.durations = Histogram()
        self._path = folder / _FILE
        self._period_s, self._first_s = period_s, first_s
        self._stopping = threading.Event()
        self._latency_s: float | None = None
        self._begun_s: float | None = None
        self._error = ""
        # A daemon thread: a medium that never answers must not hold the process's end.
        self._thread = threading.Thread(target=self._run, name="disk-probe", daemon=True)

    def start(self) -> None:
        """Begin to look, the first time in a few seconds."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; does not wait for a look that the medium keeps."""
        self._stopping.set()
        self._thread.join(timeout=1.0)

    def view(self) -> DiskView:
        """Return what is known now, at once."""
        begun_s = self._begun_s
        return DiskView(self._latency_s, 0.0 if begun_s is None else time.monotonic() - begun_s, self._error)

    def look(self) -> None:
        """Measure once; blocks for as long as the medium takes."""
        begun_s = self._begun_s = time.monotonic()
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                os.pwrite(fd, _BLOCK, 0)
                os.fdatasync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            self._error = f"cannot write {self._path}: {error.strerror}"
        else:
            self._error = ""
            self._latency_s = time.monotonic() - begun_s
            self.durations.observe(self._latency_s)
        finally:
            self._begun_s = None

    def _run(self) -> None:
        wait_s = self._first_s
        while not self._stopping.wait(wait_s):
            with contextlib.suppress(ValueError):
                self.look()
            # What was mended shall not be called broken for a minute.
            wait_s = min(self._first_s, self._period_s) if self._error else self._period_s
