"""How late the event loop comes to what is due: a task that sleeps and measures by how much it overslept."""

import asyncio
import time
from collections import deque

from brain_service.metrics import Histogram

__all__ = ["LoopLag"]

_PERIOD_S = 0.25
"""A blocked loop delays this task like any other; four looks a second cost 0.01 % of a core."""

_WINDOW_S = 60.0


class LoopLag:
    """Lateness of one event loop: `durations` ever, `worst_s` over the last minute."""

    def __init__(self, period_s: float = _PERIOD_S, window_s: float = _WINDOW_S) -> None:
        self.durations = Histogram()
        self._period_s = period_s
        # (until when it counts, lateness), of falling lateness: the first is the worst.
        self._recent: deque[tuple[float, float]] = deque()
        self._window_s = window_s

    @property
    def worst_s(self) -> float:
        """The worst lateness of the last minute, in seconds."""
        now_s = time.monotonic()
        while self._recent and self._recent[0][0] < now_s:
            self._recent.popleft()
        return self._recent[0][1] if self._recent else 0.0

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due_s = time.monotonic() + self._period_s
            await asyncio.sleep(self._period_s)
            self.note(max(0.0, time.monotonic() - due_s))

    def note(self, late_s: float) -> None:
        """Take in one lateness."""
        self.durations.observe(late_s)
        while self._recent and self._recent[-1][1] <= late_s:
            self._recent.pop()
        self._recent.append((time.monotonic() + self._window_s, late_s))
