"""Group commit: every episode with unflushed steps is flushed, at the latest when it is due.

Appends that wait for the medium and arrive while a flush of their episode runs share its next one. Episodes are
flushed side by side, so that none waits for the flush of another: where several run at once, one commit of the
file system's journal serves them all.
"""

import heapq
import itertools
import logging
import threading
import time
from pathlib import Path
from typing import Protocol

from brain_service.metrics import Histogram

__all__ = ["Flusher", "Syncable"]

_LOG = logging.getLogger(__name__)
_SIDE_BY_SIDE = 8
_RETRY_S = 1.0


class Syncable(Protocol):
    """Something with unflushed bytes."""

    def sync(self) -> None:
        """Flush to the medium and tell whoever waits; a failure is kept for them, never raised here."""


class Flusher:
    """The flushing threads of a store or logger; `interval_s` bounds how long a step stays unflushed.

    One thread at a time, the leader, waits for the next target that is due; it takes it and makes way for the next
    leader before it flushes. `side_by_side` is how many targets can be flushed at once. `durations` is how long
    flushes took, in seconds.
    """

    def __init__(self, interval_s: float, side_by_side: int = _SIDE_BY_SIDE) -> None:
        self.durations = Histogram()
        self._interval_s = interval_s
        self._leading = threading.Lock()
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        # Entries whose time is no longer that in `_due_s` are stale: their target was noted for an earlier time.
        self._queue: list[tuple[float, int, Syncable]] = []
        self._due_s: dict[Syncable, float] = {}
        # Each with the moment it began, on the monotonic clock.
        self._running: dict[Syncable, float] = {}
        self._closing = False
        self._threads = [
            threading.Thread(target=self._run, name=f"capture-sync-{n}", daemon=True) for n in range(side_by_side)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def note(self, target: Syncable, *, urgent: bool = False) -> None:
        """Have `target` flushed within the interval, or at once if somebody waits for it."""
        self._enter(target, 0.0 if urgent else time.monotonic() + self._interval_s)

    def retry(self, target: Syncable) -> None:
        """Have a target whose flush failed flushed again in a second; not any more once the flusher closes."""
        with self._changed:
            closing = self._closing
        if not closing:
            self._enter(target, time.monotonic() + _RETRY_S)

    def close(self) -> None:
        """Flush what is noted and stop the threads; returns when both are done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def stuck(self, limit_s: float, tasks: Path = Path("/proc/self/task")) -> str:
        """Tell what hangs in our own code, where only a restart helps; nothing while all moves. Never blocks.

        A flush that runs for more than `limit_s` while a thread of this process waits for the medium (state `D`
        in `tasks`) is the medium's: no restart mends that.
        """
        # Without the lock: one that is never given back is what this is to tell.
        dead = [thread.name for thread in self._threads if thread.ident is not None and not thread.is_alive()]
        if dead and not self._closing:
            return f"{dead[0]}, which flushes episodes, has died"
        now_s = time.monotonic()
        longest_s = max((now_s - begun_s for begun_s in list(self._running.values())), default=0.0)
        if longest_s > limit_s and not _waits_for_the_medium(tasks):
            return f"a flush of an episode hangs for {longest_s:.0f} s, and not for the medium"
        return ""

    def _enter(self, target: Syncable, due_s: float) -> None:
        with self._changed:
            if due_s < self._due_s.get(target, float("inf")):
                self._due_s[target] = due_s
                # What runs is entered when it is done.
                if target not in self._running:
                    self._push(target)

    def _push(self, target: Syncable) -> None:
        entry = (self._due_s[target], next(self._numbers), target)
        heapq.heappush(self._queue, entry)
        if self._queue[0] is entry:
            self._changed.notify()

    def _run(self) -> None:
        while (target := self._next()) is not None:
            begun_s = time.monotonic()
            try:
                target.sync()
            except Exception:  # noqa: BLE001 - a defect in one episode must not end the flushing of all
                _LOG.exception("an episode could not be flushed; trying again")
                self.retry(target)
            with self._changed:
                self.durations.observe(time.monotonic() - begun_s)
                del self._running[target]
                if target in self._due_s:
                    self._push(target)

    def _next(self) -> Syncable | None:
        """Wait for the target that is due first; None means that the thread should stop."""
        with self._leading, self._changed:
            while True:
                while self._queue and self._is_stale(self._queue[0]):
                    heapq.heappop(self._queue)
                wait_s = self._queue[0][0] - time.monotonic() if self._queue else None
                if self._queue and (self._closing or (wait_s is not None and wait_s <= 0)):
                    target = heapq.heappop(self._queue)[2]
                    del self._due_s[target]
                    self._running[target] = time.monotonic()
                    return target
                if self._closing:
                    return None
                self._changed.wait(wait_s)

    def _is_stale(self, entry: tuple[float, int, Syncable]) -> bool:
        due_s, _, target = entry
        return self._due_s.get(target) != due_s or target in self._running


def _waits_for_the_medium(tasks: Path) -> bool:
    for stat in tasks.glob("*/stat"):
        try:
            # The name, in parentheses, may hold spaces; the state follows it (proc(5)).
            state = stat.read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if state == "D":
            return True
    return False
