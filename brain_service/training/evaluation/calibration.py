"""Whether a model knows how sure it may be: how often the truth lies in the intervals that it predicts."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Float

__all__ = ["Calibration", "calibration"]

LEVELS = (0.5, 0.8, 0.9, 0.95)
BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Shares of actions inside central intervals; a perfect model has `coverage` equal to `levels`.

    `histogram` counts where the truth lies in the predicted distribution, as shares of ten equal parts of its
    cumulative probability: flat where the model is calibrated, a hill where it is too timid, a valley where it is
    too sure (Dawid 1984, the probability integral transform). `error` is the mean distance of coverage from level.
    """

    levels: list[float]
    coverage: list[float]
    coverage_by_element: list[list[float]]
    """One list a level, one entry an action element."""
    histogram: list[float]
    error: float


def calibration(scaled: Float[np.ndarray, "N A"]) -> Calibration:
    """Return the figures of N errors in units of the predicted standard deviation."""
    reach = np.abs(scaled)
    limits = [NormalDist().inv_cdf(0.5 + level / 2) for level in LEVELS]
    by_element = [(reach <= limit).mean(axis=0).tolist() for limit in limits]
    coverage = [float(np.mean(row)) for row in by_element]
    places = np.asarray(norm.cdf(scaled), np.float64)
    counts, _ = np.histogram(places, bins=BINS, range=(0.0, 1.0))
    return Calibration(
        levels=list(LEVELS),
        coverage=coverage,
        coverage_by_element=by_element,
        histogram=(counts / max(1, counts.sum())).tolist(),
        error=float(np.mean(np.abs(np.asarray(coverage) - LEVELS))),
    )
