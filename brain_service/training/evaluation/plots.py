"""The evaluation's plots as inline SVG, in the data report's style."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from brain_service.datasets.quality.plots import DATA, LINE, WARN, svg
from brain_service.training.evaluation.calibration import Calibration
from brain_service.training.evaluation.rollouts import Rollouts

__all__ = ["calibration_plot", "elements_plot", "histogram_plot", "rollouts_plot"]

_NAMED = 16  # more names than these do not fit under an axis


def elements_plot(
    name: str,
    elements: Sequence[str],
    model: Sequence[float],
    mean: Sequence[float],
    repeat: Sequence[float],
) -> str:
    """Return each element's error as a share of the mean action's, with that of repeating the last action."""
    unit = np.maximum(np.asarray(mean), 1e-12)

    def draw(axes: Axes) -> None:
        places = np.arange(len(elements))
        axes.bar(places, np.asarray(model) / unit, 0.7, color=DATA, label="model")
        axes.plot(places, np.asarray(repeat) / unit, "_", color=WARN, markersize=12, label="repeat the last")
        axes.axhline(1.0, color=LINE, linestyle="--", linewidth=1)
        axes.set_ylabel("error / mean action's error")
        if len(elements) <= _NAMED:
            axes.set_xticks(places, elements, rotation=45, ha="right")
        else:
            axes.set_xlabel("action element")
        axes.legend(frameon=False, fontsize=9)

    return svg(name, draw, 4.6, 3.2)


def calibration_plot(name: str, found: Calibration) -> str:
    """Return the coverage of the predicted intervals over their level, beside the diagonal."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=LINE, linestyle="--", linewidth=1)
        axes.plot([0, *found.levels, 1], [0, *found.coverage, 1], "o-", color=DATA, markersize=4)
        axes.set_xlabel("level of the interval")
        axes.set_ylabel("share of actions inside")

    return svg(name, draw, 4.2, 3.2)


def histogram_plot(name: str, shares: Sequence[float]) -> str:
    """Return the histogram of the probability integral transform."""

    def draw(axes: Axes) -> None:
        axes.stairs(shares, np.linspace(0, 1, len(shares) + 1), fill=True, color=DATA)
        axes.axhline(1 / len(shares), color=LINE, linestyle="--", linewidth=1)
        axes.set_xlabel("predicted cumulative probability of the action")
        axes.set_ylabel("share")
        axes.set_ylim(bottom=0)

    return svg(name, draw, 4.2, 3.2)


def rollouts_plot(name: str, found: Rollouts) -> str:
    """Return the error over the steps of imagination, beside a world that stands still."""

    def draw(axes: Axes) -> None:
        axes.plot(found.horizons, found.observation_rmse, "o-", color=DATA, markersize=4, label="model")
        axes.plot(found.horizons, found.still_rmse, "o--", color=WARN, markersize=4, label="nothing changes")
        axes.set_xscale("log", base=2)
        axes.set_xticks(found.horizons, [str(horizon) for horizon in found.horizons])
        axes.set_xlabel("steps")
        axes.set_ylabel("observation error (standard deviations)")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=9)

    return svg(name, draw, 4.6, 3.2)
