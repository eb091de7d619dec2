"""`status.json`: a thread writes it every few seconds, so that neither compiling nor a hung step silences the run.

A hung step shows: the file goes on changing, `step` and `stepped_ns` do not.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from brain_service.cloud.run_status import STATUS_FILE, RunStatus
from brain_service.datasets.places import Place
from brain_service.errors import BrainError, CorruptDataError

__all__ = ["Heartbeat", "read_status"]

log = logging.getLogger(__name__)


def read_status(place: Place) -> RunStatus | None:
    """Return the last heartbeat of a run below its output directory, None where there is none that can be read.

    Raises:
        ForbiddenError: these credentials may not read there.
        UnavailableError: it cannot be read now.
    """
    data = place.read(STATUS_FILE)
    if data is None:
        return None
    try:
        return RunStatus.from_json(data, f"{place.location}/{STATUS_FILE}")
    except CorruptDataError as error:
        log.warning("the old heartbeat is not readable, its counts begin anew", extra={"reason": error.detail})
        return None


class Heartbeat:
    """The run's own word on itself; a context manager. Without a `place` (other hosts) nothing is written.

    `goodput` is asked for the buckets at every beat; `also` is done before each of them, in the same thread.
    """

    def __init__(
        self,
        place: Place | None,
        status: RunStatus,
        *,
        goodput: Callable[[], Mapping[str, float]],
        interval_s: float,
        also: Callable[[], None] = lambda: None,
    ) -> None:
        self._place = place
        self._status = status
        self._goodput = goodput
        self._interval_s = interval_s
        self._also = also
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._due = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    @property
    def status(self) -> RunStatus:
        """What the next beat says, but for its time and buckets."""
        return self._status

    def __enter__(self) -> "Heartbeat":
        if self._place is not None:
            # The first one in this thread: an output directory that cannot be written to ends the run here.
            self._write(self._place)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def update(self, **changes: Any) -> None:
        """Change what is told from the next beat on; a new phase is told at once."""
        with self._lock:
            moved = any(changes.get(name, now) != now for name, now in self._moving())
            turned = changes.get("phase", self._status.phase) != self._status.phase
            stepped_ns = time.time_ns() if moved else self._status.stepped_ns
            self._status = replace(self._status, **changes, stepped_ns=stepped_ns)
        if turned:
            self.wake()

    def _moving(self) -> tuple[tuple[str, Any], ...]:
        return (("step", self._status.step), ("phase", self._status.phase))

    def wake(self) -> None:
        """Have the thread beat now."""
        self._due.set()

    def end(self, **changes: Any) -> None:
        """Say the last word.

        Raises:
            ForbiddenError: these credentials may not write there any more.
            UnavailableError: it cannot be written.
        """
        self.update(**changes)
        self._stop()
        if self._place is not None:
            self._also()
            self._write(self._place)

    def _stop(self) -> None:
        self._over.set()
        self._due.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _beat(self) -> None:
        assert self._place is not None
        while True:
            self._due.wait(self._interval_s)
            self._due.clear()
            if self._over.is_set():
                return
            try:
                self._also()
                self._write(self._place)
            except BrainError as error:
                # The run is worth more than its word: whoever waits for it sees that it is late.
                log.warning("no heartbeat could be written", extra={"reason": error.detail})

    def _write(self, place: Place) -> None:
        with self._writing:
            with self._lock:
                status = self._status
            now = replace(status, updated_ns=time.time_ns(), goodput=dict(self._goodput()))
            place.write(STATUS_FILE, now.to_json())

    def last_words(self, **changes: Any) -> None:
        """Do `end`, from any thread and whatever happens: the process is about to be ended."""
        with suppress(BrainError):
            self.end(**changes)
