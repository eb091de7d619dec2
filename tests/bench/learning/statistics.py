"""Intervals: Wilson for successes, a bootstrap over seeds and episodes for returns (both 95 %)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, trim_mean

__all__ = ["Figure", "interquartile_mean", "returns", "successes"]

DRAWS = 4000


@dataclass(frozen=True)
class Figure:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def below(self, other: "Figure") -> bool:
        """Say whether this one is lower beyond both intervals."""
        return self.high < other.low


def successes(scores: Sequence[Sequence[float]]) -> Figure:
    """Return the success rate over all seeds' episodes, with Wilson's interval."""
    wins, total = int(sum(map(sum, scores))), sum(map(len, scores))
    interval = binomtest(wins, total).proportion_ci(0.95, method="wilson")
    return Figure(wins / total, float(interval.low), float(interval.high))


def returns(scores: Sequence[Sequence[float]]) -> Figure:
    """Return the mean over seeds, bootstrapped over seeds and over the episodes of each.

    Training differs from seed to seed more than episodes do, so seeds are drawn too (Agarwal et al.,
    arXiv 2108.13264). With one seed the interval speaks of its episodes only.
    """
    table = np.asarray(scores, np.float64)
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, len(table), (DRAWS, len(table)))
    episodes = rng.integers(0, table.shape[1], (DRAWS, len(table), table.shape[1]))
    means = table[seeds[..., None], episodes].mean(axis=(1, 2))
    low, high = np.quantile(means, (0.025, 0.975))
    return Figure(float(table.mean()), float(low), float(high))


def interquartile_mean(scores: Sequence[Sequence[float]]) -> float:
    """Return the mean of the middle half of all episodes' scores."""
    return float(trim_mean(np.concatenate([np.asarray(row) for row in scores]), 0.25))
