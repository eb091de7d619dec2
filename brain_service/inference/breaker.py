"""Circuit breaker of one backend: after a failure it rests, and is then tried again in the background."""

import time
from collections.abc import Callable
from typing import Literal

__all__ = ["Breaker"]

_STABLE_S = 10.0
"""A backend that failed after so long in use begins anew with the shortest rest."""

_REST_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_LASTING_REST_S = 300.0


class Breaker:
    """Closed: in use, or never tried. Open: it failed, and rests. Half-open: one attempt is under way.

    Each failure in a row doubles the rest, roughly, up to half a minute. `clock` gives monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.failures = 0
        self.reason: str | None = None
        self.state: Literal["closed", "open", "half-open"] = "closed"
        self._clock = clock
        self._since_s = clock()
        self._rest_s = 0.0

    @property
    def wait_s(self) -> float:
        """Seconds until an attempt is allowed; 0 when it is."""
        if self.state != "open":
            return 0.0
        return max(0.0, self._since_s + self._rest_s - self._clock())

    def attempt(self) -> None:
        """Note that a fresh worker is being started."""
        if self.state == "open":
            self._enter("half-open")

    def succeed(self) -> None:
        """Note that the backend is in use."""
        self._enter("closed")

    def fail(self, reason: str, *, lasting: bool = False) -> None:
        """Open. `lasting` is for what another attempt a moment later will not mend: the next comes in minutes."""
        if self.state == "closed" and self._clock() - self._since_s >= _STABLE_S:
            self.failures = 0
        self._rest_s = _LASTING_REST_S if lasting else _REST_S[min(self.failures, len(_REST_S) - 1)]
        self.failures += 1
        self.reason = reason
        self._enter("open")

    def _enter(self, state: Literal["closed", "open", "half-open"]) -> None:
        self.state = state
        self._since_s = self._clock()
