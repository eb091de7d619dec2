"""A finding: what is wrong, in which episodes, by how much, and what to do."""

from collections.abc import Iterable
from typing import Literal

import msgspec
import numpy as np
from jaxtyping import Float32, Int64

__all__ = ["Finding", "Severity", "Worst", "by_severity", "count_of", "name_some", "verdict"]

Severity = Literal["info", "warn", "fail"]
_ORDER: tuple[Severity, ...] = ("fail", "warn", "info")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One warning. `episodes` are those to look at, the worst first; empty = it is about all of them.

    `feature` is a feature or one dimension of it (`observation/state[3]`); `value` is what was measured and
    `limit` what it was held against, in the unit that the message names.
    """

    code: str
    severity: Severity
    message: str
    fix: str
    episodes: list[str] = []
    feature: str | None = None
    value: float | None = None
    limit: float | None = None


def verdict(findings: Iterable[Finding]) -> Literal["pass", "warn", "fail"]:
    """Return the worst severity; what only informs passes."""
    found = {finding.severity for finding in findings}
    return "fail" if "fail" in found else "warn" if "warn" in found else "pass"


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings with the gravest first, otherwise in their order."""
    return sorted(findings, key=lambda finding: _ORDER.index(finding.severity))


def count_of(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural where it is not one."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def name_some(names: list[str], most: int = 3) -> str:
    """Return the first few names as text, and how many more there are."""
    text = ", ".join(names[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text


class Worst:
    """The `keep` largest values of each of n columns over any number of episodes, with episode and step.

    Memory is `keep * n` whatever the number of episodes.
    """

    def __init__(self, columns: int, keep: int = 64) -> None:
        self._values = np.full((keep, columns), -np.inf, np.float32)
        self._episodes = np.zeros((keep, columns), np.int64)
        self._steps = np.zeros((keep, columns), np.int64)
        self._columns = np.arange(columns)

    def add(self, episode: int, values: Float32[np.ndarray, " n"], steps: Int64[np.ndarray, " n"]) -> None:
        """Take one episode's largest value of each column, shape `[n]`, and the step where it stands."""
        slots = self._values.argmin(axis=0)
        better = values > self._values[slots, self._columns]
        slots, columns = slots[better], self._columns[better]
        self._values[slots, columns] = values[better]
        self._episodes[slots, columns] = episode
        self._steps[slots, columns] = steps[better]

    def above(self, column: int, limit: float) -> list[tuple[float, int, int]]:
        """Return (value, episode, step) of a column's kept values over `limit`, the largest first."""
        found = zip(
            self._values[:, column].tolist(),
            self._episodes[:, column].tolist(),
            self._steps[:, column].tolist(),
            strict=True,
        )
        return sorted((item for item in found if item[0] > limit), key=lambda item: (-item[0], *item[1:]))
