"""Group commit: every episode with unflushed steps is flushed, at the latest when it is due.

Appends that wait for the medium and arrive while a flush runs share the next one. Several episodes that are due
at once are flushed side by side: one commit of the file system's journal serves them all. Who waits for them is
told by the thread that flushed a share of them, for all of its share at once: answers that come one by one wake
their clients one by one, who then come back one by one, and no flush is shared any more.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

__all__ = ["Flusher", "Syncable"]

_LOG = logging.getLogger(__name__)
_SIDE_BY_SIDE = 8
_RETRY_S = 1.0


class Syncable(Protocol):
    """Something with unflushed bytes."""

    def flush(self) -> Callable[[], None]:
        """Flush to the medium and return what tells whoever waits, of a failure too: that is never raised here."""


class Flusher:
    """The flushing threads of a store or logger; `interval_s` bounds how long a step stays unflushed."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._due_s: dict[Syncable, float] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="capture-sync", daemon=True)
        self._helpers = ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="capture-sync")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def note(self, target: Syncable, *, urgent: bool = False) -> None:
        """Have `target` flushed within the interval, or at once if somebody waits for it."""
        self._enter(target, 0.0 if urgent else self._interval_s)

    def retry(self, target: Syncable) -> None:
        """Have a target whose flush failed flushed again in a second; not any more once the flusher closes."""
        with self._changed:
            closing = self._closing
        if not closing:
            self._enter(target, _RETRY_S)

    def close(self) -> None:
        """Flush what is noted and stop the threads; returns when both are done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()
        self._helpers.shutdown()

    def _enter(self, target: Syncable, wait_s: float) -> None:
        with self._changed:
            due_s = time.monotonic() + wait_s
            if due_s < self._due_s.get(target, float("inf")):
                self._due_s[target] = due_s
                self._changed.notify()

    def _run(self) -> None:
        while targets := self._next():
            if len(targets) == 1:
                self._flush(targets)
            else:
                list(self._helpers.map(self._flush, [targets[n::_SIDE_BY_SIDE] for n in range(_SIDE_BY_SIDE)]))

    def _flush(self, targets: Sequence[Syncable]) -> None:
        ready = []
        for target in targets:
            try:
                ready.append((target, target.flush()))
            except Exception:  # noqa: BLE001 - a defect in one episode must not end the flushing of all
                self._try_again(target)
        for target, tell in ready:
            try:
                tell()
            except Exception:  # noqa: BLE001 - the same
                self._try_again(target)

    def _try_again(self, target: Syncable) -> None:
        _LOG.exception("an episode could not be flushed; trying again")
        self.retry(target)

    def _next(self) -> list[Syncable]:
        """Wait for what is due, earliest first; nothing means that the thread should stop."""
        with self._changed:
            while True:
                now_s = time.monotonic()
                due = [
                    t
                    for t, due_s in sorted(self._due_s.items(), key=lambda item: item[1])
                    if self._closing or due_s <= now_s
                ]
                if due or self._closing:
                    for target in due:
                        del self._due_s[target]
                    return due
                self._changed.wait(min(self._due_s.values()) - now_s if self._due_s else None)
