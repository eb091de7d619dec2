"""Percentiles over the last answers, cheap to feed on the hot path."""

import numpy as np

__all__ = ["LatencyWindow"]


class LatencyWindow:
    """The last `size` durations in microseconds; sorted only when asked for."""

    def __init__(self, size: int = 1024) -> None:
        self._values_us = np.zeros(size, np.float32)
        self._count = 0

    def add(self, value_us: float) -> None:
        """Take in one duration, dropping the oldest when full."""
        self._values_us[self._count % self._values_us.size] = value_us
        self._count += 1

    def summary(self) -> dict[str, float | int | None]:
        """Return p50 and p99 in microseconds over the window (None while empty) and the number ever added."""
        filled = self._values_us[: min(self._count, self._values_us.size)]
        if not filled.size:
            return {"p50": None, "p99": None, "count": 0}
        p50, p99 = np.percentile(filled, [50, 99])
        return {"p50": round(float(p50), 1), "p99": round(float(p99), 1), "count": self._count}
