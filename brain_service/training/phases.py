"""What a run spends its time on, told apart without gaps: whatever is not one phase is another."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable

__all__ = ["PhaseClock"]


class PhaseClock:
    """Seconds by phase. One phase runs at any time, so they add up to the time since the clock was made.

    The thread that trains tells it; any other may read it.
    """

    def __init__(self, phase: str = "start", now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._phase = phase
        self._since_s = now()

    def begin(self, phase: str) -> None:
        """End the phase that runs, and let another one begin."""
        with self._lock:
            now_s = self._now()
            self._spent[self._phase] += now_s - self._since_s
            self._phase, self._since_s = phase, now_s

    def was(self, phase: str) -> None:
        """Say that what ran since the last `begin` was another phase than it was taken for."""
        with self._lock:
            self._phase = phase

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase so far, the running one included."""
        with self._lock:
            found = dict(self._spent)
            found[self._phase] = found.get(self._phase, 0.0) + self._now() - self._since_s
            return found
