"""Mean, spread, range and quantiles of one feature: counted in one pass, and joined with those of other rows."""

from dataclasses import dataclass, field

import msgspec
import numpy as np
from jaxtyping import Float32, Float64, Shaped

__all__ = ["FeatureStatistics", "Moments"]

_BLOCK_NUMBERS = 1 << 15
# Of float32 samples at a time, to be sorted for quantiles.
_COLUMNS = 16


class FeatureStatistics(msgspec.Struct, frozen=True):
    """Figures of one feature, each a flat list over its elements; `std` is the population's.

    `p01`/`p99` and `q01`/`q99` are the same quantiles under the names that Octo and OpenVLA look for.
    """

    mean: list[float]
    std: list[float]
    min: list[float]
    max: list[float]
    p01: list[float]
    p99: list[float]
    q01: list[float]
    q99: list[float]


@dataclass
class Moments:
    """Exact running moments of rows `[T, n]`, and every `stride`-th of them for quantiles.

    `before` counts the rows of the whole that come before these, where they are a part of one.
    """

    count: int
    mean: Float64[np.ndarray, " n"]
    squares: Float64[np.ndarray, " n"]
    low: Float64[np.ndarray, " n"]
    high: Float64[np.ndarray, " n"]
    sample: list[Float32[np.ndarray, "_ n"]] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)
    """For each part of the sample the number of rows that were sampled before it."""
    before: int = 0

    @staticmethod
    def empty(size: int, before: int = 0) -> "Moments":
        """Return the moments of no rows of `size` numbers."""
        low, high = np.full(size, np.inf), np.full(size, -np.inf)
        return Moments(0, np.zeros(size), np.zeros(size), low, high, before=before)

    @staticmethod
    def of_figures(figures: FeatureStatistics, count: int) -> "Moments":
        """Return the moments that gave these figures of `count` rows; the sample is lost."""
        if count == 0:
            return Moments.empty(len(figures.mean))
        std = np.asarray(figures.std)
        return Moments(
            count, np.asarray(figures.mean), std**2 * count, np.asarray(figures.min), np.asarray(figures.max)
        )

    def add(self, rows: Shaped[np.ndarray, "T n"], stride: int) -> None:
        """Merge rows into the moments (Chan, Golub, LeVeque 1979: no cancellation for large offsets)."""
        if not len(rows):
            return
        first = -(self.before + self.count) % stride
        self.sample.append(rows[first::stride].astype(np.float32))
        self.sampled.append(-(-self.count // stride))
        # A block at a time stays in the processor's cache, and a long episode takes no more memory than a short.
        block = max(1, _BLOCK_NUMBERS // rows.shape[1]) if rows.shape[1] else len(rows)
        for start in range(0, len(rows), block):
            self._merge(rows[start : start + block])

    def _merge(self, rows: Shaped[np.ndarray, "T n"]) -> None:
        mean = rows.mean(axis=0, dtype=np.float64)
        off = rows - mean
        squares = np.einsum("tn,tn->n", off, off)
        low, high = rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64)
        self.join(Moments(len(rows), mean, squares, low, high))

    def join(self, other: "Moments") -> None:
        """Take the rows of `other` as well, and its sample after this one."""
        total = self.count + other.count
        if not other.count:
            return
        delta = other.mean - self.mean
        self.squares = self.squares + (other.squares + delta**2 * (self.count * other.count / total))
        self.mean = self.mean + delta * (other.count / total)
        self.low = np.minimum(self.low, other.low)
        self.high = np.maximum(self.high, other.high)
        self.count = total
        self.sample += other.sample

    def thin(self) -> None:
        """Keep every second row of the sample, as if the stride had always been twice what it was."""
        self.sample = [
            part[before % 2 :: 2].copy() for part, before in zip(self.sample, self.sampled, strict=True)
        ]
        self.sampled = [-(-before // 2) for before in self.sampled]

    def result(self) -> FeatureStatistics:
        """Return the figures; zeros where there was no row."""
        if self.count == 0:
            zeros = [0.0] * len(self.mean)
            return FeatureStatistics(*[zeros] * 8)
        # A few columns at a time: all at once would take the memory of the sample twice again.
        quantiles = [
            _quantiles(np.concatenate([part[:, n : n + _COLUMNS] for part in self.sample]))
            for n in range(0, len(self.mean), _COLUMNS)
        ]
        q01, q99 = np.concatenate(quantiles, axis=1).tolist()
        std = np.sqrt(self.squares / self.count).tolist()
        return FeatureStatistics(
            self.mean.tolist(), std, self.low.tolist(), self.high.tolist(), q01, q99, q01, q99
        )


def _quantiles(rows: Float32[np.ndarray, "t n"]) -> Float64[np.ndarray, "2 n"]:
    """Return the 1st and 99th percentile of each column, interpolated linearly as NumPy has it."""
    # Sorted whole, with vector instructions: a selection of four ranks takes several times as long.
    columns = np.sort(np.ascontiguousarray(rows.T), axis=1)
    ranks = np.array([0.01, 0.99]) * (len(rows) - 1)
    low = np.floor(ranks).astype(np.int64)
    high = np.minimum(low + 1, len(rows) - 1)
    below, above = columns[:, low].astype(np.float64), columns[:, high].astype(np.float64)
    found: Float64[np.ndarray, "2 n"] = (below + (above - below) * (ranks - low)).T
    return found
