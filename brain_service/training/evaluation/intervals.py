"""95 % intervals: Wilson's for a share of successes, and a bootstrap over episodes for a paired difference."""

from math import inf, sqrt

import numpy as np
from jaxtyping import Float, Int

__all__ = ["paired_bootstrap", "wilson"]

Z = 1.959964  # the normal distribution's 97.5 % point
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # Student's, 1 to 10 degrees
DRAWS = 4000


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a share; (0, 1) without a trial."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, Z * Z / trials
    centre = (share + z2 / 2) / (1 + z2)
    reach = sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
    # At the ends it is exact; rounding must not carry it past them.
    return (0.0 if successes == 0 else centre - reach), (1.0 if successes == trials else centre + reach)


def paired_bootstrap(
    first: Float[np.ndarray, "E"], second: Float[np.ndarray, "E"], weights: Int[np.ndarray, "E"], *, seed: int = 0
) -> tuple[float, float]:
    """Return the interval of the mean of first - second over E episodes, each counted `weights` times.

    Episodes are drawn with replacement, both models' figures of an episode together: what makes an episode hard
    for both cancels. `first` and `second` are sums over an episode, `weights` its steps.

    A bootstrap's intervals are too narrow where episodes are few; with one they have no width at all. They are
    widened as Student's distribution asks (after Hesterberg, The American Statistician 69, 2015), and of one
    episode the interval is infinite.
    """
    if len(first) < 2:
        return -inf, inf
    draws = np.random.default_rng(seed).multinomial(len(first), np.full(len(first), 1 / len(first)), DRAWS)
    means = draws @ (first - second) / (draws @ weights)
    middle = np.sum(first - second) / np.sum(weights)
    low, high = middle + _widening(len(first)) * (np.quantile(means, (0.025, 0.975)) - middle)
    return float(low), float(high)


def _widening(episodes: int) -> float:
    free = episodes - 1
    # From eleven degrees on the first terms of Student's quantile in 1 / degrees are right to 1 %.
    student = STUDENT[free - 1] if free <= len(STUDENT) else Z + (Z**3 + Z) / (4 * free)
    return student / Z * sqrt(episodes / free)
