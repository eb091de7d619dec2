"""A total over things that come and go, each with a count of its own that only grows."""

from collections.abc import Mapping

__all__ = ["Growing"]


class Growing:
    """Sums growth: what is gone stays counted, and what begins anew at zero is counted from there."""

    def __init__(self) -> None:
        self.total = 0.0
        self._last: dict[str, float] = {}

    def take(self, counts: Mapping[str, float]) -> float:
        """Take in the counts as they are now and return the total."""
        for name, count in counts.items():
            before = self._last.get(name, 0.0)
            self.total += count - before if count >= before else count
        self._last = dict(counts)
        return self.total
