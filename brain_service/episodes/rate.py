"""How many steps a second an episode may take: a token bucket."""

import threading
import time

from brain_service.errors import TooManyError

__all__ = ["StepRate"]


class StepRate:
    """Allows `steps_per_s`, and up to `burst` at once after a pause. Thread-safe."""

    def __init__(self, steps_per_s: float, burst: float) -> None:
        self._steps_per_s = steps_per_s
        self._burst = burst
        self._left = burst
        self._seen_s = time.monotonic()
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Count `count` new steps.

        Raises:
            TooManyError: they come too early; `retry_after_s` says when they may.
        """
        missing = self._take(count)
        if missing > 0:
            wait_s = missing / self._steps_per_s
            raise TooManyError(
                f"more than max_steps_per_s = {self._steps_per_s:g} steps a second; wait {wait_s:.3f} s",
                retry_after_s=round(wait_s, 3),
            )

    def allows(self, count: int) -> bool:
        """Count `count` new steps if they may come now, and tell whether they may."""
        return self._take(count) <= 0

    def _take(self, count: int) -> float:
        """Take `count` tokens, or none where some are missing; return how many are."""
        with self._lock:
            now_s = time.monotonic()
            self._left = min(self._burst, self._left + (now_s - self._seen_s) * self._steps_per_s)
            self._seen_s = now_s
            missing = count - self._left
            if missing <= 0:
                self._left -= count
            return missing
