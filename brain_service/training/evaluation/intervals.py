"""95 % intervals: Wilson's for a share of successes, and a bootstrap over episodes for a paired difference."""

from math import sqrt

import numpy as np
from jaxtyping import Float, Int

__all__ = ["paired_bootstrap", "wilson"]

Z = 1.959964  # the normal distribution's 97.5 % point
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
    """
    draws = np.random.default_rng(seed).multinomial(len(first), np.full(len(first), 1 / len(first)), DRAWS)
    means = draws @ (first - second) / (draws @ weights)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
