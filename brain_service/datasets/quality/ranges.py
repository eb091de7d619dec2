"""Ranges of every dimension: moments, quantiles, histograms; constant, saturated and not finite ones."""

import msgspec
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from brain_service.datasets.quality.findings import Finding, name_some
from brain_service.datasets.quality.limits import Limits
from brain_service.datasets.quality.view import EpisodeView

__all__ = ["Dimension", "Histogram", "Ranges", "histogram", "range_findings"]

_BINS = 32


class Histogram(msgspec.Struct, frozen=True):
    """Counts in equal bins from `low` to `high`."""

    low: float
    high: float
    counts: list[int]


def histogram(values: Float[np.ndarray, " n"], bins: int = _BINS) -> Histogram:
    """Return the histogram over the range of the values: one bin where all are equal, none without values."""
    if not len(values):
        return Histogram(0.0, 0.0, [])
    # As float64: the width of a bin may be below what float32 resolves.
    low, high = float(values.min()), float(values.max())
    if low == high:
        return Histogram(low, high, [len(values)])
    places = (values.astype(np.float64) - low) * (bins / (high - low))
    counts = np.bincount(np.minimum(places.astype(np.int64), bins - 1), minlength=bins)
    return Histogram(low, high, counts.tolist())


class Dimension(msgspec.Struct, frozen=True):
    """One dimension. Moments and extremes are of all steps, quantiles and histogram of the sampled ones.

    `at_min` and `at_max` are the shares of steps at the observed extremes; a constant has both at 1.
    """

    name: str
    mean: float
    std: float
    min: float
    p01: float
    median: float
    p99: float
    max: float
    at_min: float
    at_max: float
    nan_or_inf: int
    histogram: Histogram

    @property
    def is_constant(self) -> bool:
        """Whether it has one value in all steps."""
        return self.min == self.max


class Ranges:
    """Running figures of n dimensions over all steps."""

    def __init__(self, names: list[str]) -> None:
        size = len(names)
        self._names = names
        self._count = 0
        self._mean = np.zeros(size)
        self._squares = np.zeros(size)
        self._low = np.full(size, np.inf, np.float32)
        self._high = np.full(size, -np.inf, np.float32)
        self._at_low = np.zeros(size, np.int64)
        self._at_high = np.zeros(size, np.int64)
        self._not_finite = np.zeros(size, np.int64)
        self._bad: dict[int, list[str]] = {}

    def add(self, view: EpisodeView, rows: Float32[np.ndarray, "T n"], bad: Int64[np.ndarray, " n"]) -> None:
        """Take one episode's rows, shape `[T, n]`; `bad` counts what was not finite in each dimension."""
        if bad.any():
            self._not_finite += bad
            for dimension in np.flatnonzero(bad).tolist():
                self._bad.setdefault(dimension, []).append(view.episode_id)
        if not len(rows):
            return
        # Chan, Golub, LeVeque 1979: merge the moments of this episode into those of all before it.
        added, mean, squares = _moments(rows)
        total = self._count + added
        delta = mean - self._mean
        self._squares += squares + delta**2 * (self._count * added / total)
        self._mean += delta * (added / total)
        self._count = total
        self._low, self._at_low = _extreme(np.minimum, self._low, self._at_low, rows, rows.min(axis=0))
        self._high, self._at_high = _extreme(np.maximum, self._high, self._at_high, rows, rows.max(axis=0))

    def result(self, sampled: Float32[np.ndarray, "m n"]) -> list[Dimension]:
        """Return the dimensions; `sampled` are the rows of the sample, shape `[m, n]`."""
        count = max(self._count, 1)
        std = np.sqrt(self._squares / count)
        low, high = (np.where(np.isfinite(side), side, 0) for side in (self._low, self._high))
        quantiles = np.array([_quantiles(sampled[:, i]) for i in range(len(std))]).reshape(-1, 3).T
        return [
            Dimension(
                name=name,
                mean=float(self._mean[i]),
                std=float(std[i]),
                min=float(low[i]),
                p01=float(quantiles[0, i]),
                median=float(quantiles[1, i]),
                p99=float(quantiles[2, i]),
                max=float(high[i]),
                at_min=float(self._at_low[i] / count),
                at_max=float(self._at_high[i] / count),
                nan_or_inf=int(self._not_finite[i]),
                histogram=histogram(sampled[:, i]),
            )
            for i, name in enumerate(self._names)
        ]

    def bad_episodes(self, dimension: int) -> list[str]:
        """Return the episodes with a value in this dimension that is not finite."""
        return self._bad.get(dimension, [])


def _quantiles(values: Float32[np.ndarray, " m"]) -> Float64[np.ndarray, " 3"]:
    """Return the 1 %, 50 % and 99 % quantiles; in float64, where halfway between two extremes is no overflow."""
    return np.quantile(values.astype(np.float64), (0.01, 0.5, 0.99)) if len(values) else np.zeros(3)


def _moments(
    rows: Float32[np.ndarray, "T n"],
) -> tuple[int, Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Return count, mean and summed squared deviations of rows."""
    wide = rows.astype(np.float64)
    ones = np.ones(len(wide))
    # A product with a vector of ones is the sum over time at the speed of BLAS.
    mean = (ones @ wide) / len(wide)
    wide -= mean
    return len(wide), mean, ones @ np.square(wide, out=wide)


def _extreme(
    choose: np.ufunc,
    known: Float32[np.ndarray, " n"],
    count: Int64[np.ndarray, " n"],
    rows: Float32[np.ndarray, "T n"],
    found: Float32[np.ndarray, " n"],
) -> tuple[Float32[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Merge an episode's extreme into the known one and count the steps at what is now the extreme."""
    extreme = choose(known, found)
    kept: Bool[np.ndarray, " n"] = extreme == known
    here = np.zeros_like(count)
    reached = extreme == found
    if reached.any():
        here[reached] = np.count_nonzero(rows[:, reached] == extreme[reached], axis=0)
    return extreme, np.where(kept, count, 0) + here


def range_findings(
    dimensions: list[Dimension],
    ranges: Ranges,
    sampled: Float32[np.ndarray, "m n"],
    episode: Int64[np.ndarray, " m"],
    names: list[str],
    limits: Limits,
) -> list[Finding]:
    """Return what is wrong with the dimensions.

    `episode` and `names` tell where each of the rows `sampled`, shape `[m, n]`, is from.
    """
    found = []
    for i, dimension in enumerate(dimensions):
        if dimension.nan_or_inf:
            found.append(_not_finite(dimension, ranges.bad_episodes(i)))
        if dimension.is_constant or limits.max_saturated_share >= 1:
            continue
        share, extreme = max((dimension.at_min, dimension.min), (dimension.at_max, dimension.max))
        # Two values or three (a gripper, a flag, a mode) are no range that could saturate.
        if share > limits.max_saturated_share and len(np.unique(sampled[:, i])) > 3:
            found.append(_saturated(dimension, share, extreme, sampled[:, i], episode, names, limits))
    constant = [dimension for dimension in dimensions if dimension.is_constant]
    if constant:
        found.append(_constant(constant))
    return found


def _not_finite(dimension: Dimension, episodes: list[str]) -> Finding:
    return Finding(
        code="not_finite",
        severity="fail",
        message=f"{dimension.name} holds NaN or an infinity {dimension.nan_or_inf} times, "
        f"in {name_some(episodes)}",
        fix="leave these episodes out and find the sensor or division that makes them; one NaN ends a training",
        episodes=episodes,
        feature=dimension.name,
        value=dimension.nan_or_inf,
        limit=0,
    )


def _constant(constant: list[Dimension]) -> Finding:
    names = [dimension.name for dimension in constant]
    only = len(constant) == 1
    return Finding(
        code="constant_dimension",
        severity="warn" if any(name.startswith("action/") for name in names) else "info",
        message=f"{name_some(names, 5)} {'has' if only else 'have'} one value in all episodes",
        fix="leave the feature out of the recording if it is no signal; if it is one, check its wiring and driver",
        feature=names[0] if only else None,
        value=len(constant),
        limit=0,
    )


def _saturated(
    dimension: Dimension,
    share: float,
    extreme: float,
    sampled: Float32[np.ndarray, " m"],
    episode: Int64[np.ndarray, " m"],
    names: list[str],
    limits: Limits,
) -> Finding:
    # Those that stand there more than the others do.
    steps = np.maximum(np.bincount(episode, minlength=len(names)), 1)
    shares = np.bincount(episode[sampled == np.float32(extreme)], minlength=len(names)) / steps
    worst = [names[i] for i in np.argsort(-shares, kind="stable") if shares[i] > share]
    return Finding(
        code="saturated_dimension",
        # Forces and contacts rest at 0, quaternions at 1: an observation's extreme is often its usual value.
        severity="warn" if dimension.name.startswith("action/") else "info",
        message=f"{dimension.name} stands at its extreme {extreme:.6g} in {share:.0%} of all steps, "
        f"most often in {name_some(worst)}",
        fix="widen the sensor's range or the action's limits, or scale the command: beyond the limit nothing "
        "can be learned",
        episodes=worst,
        feature=dimension.name,
        value=share,
        limit=limits.max_saturated_share,
    )
