"""Principal components of observations, and the largest hole in a cloud of points.

A hole is an empty disc with data on all sides. How many points it would hold if the density around it went on
is counted in the ring from its radius r to 2 r, whose area is three times its own, so the density elsewhere does
not matter. Rings need points in all of eight sectors, so that the outside of the cloud is no hole.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64

__all__ = ["Hole", "Projection", "fit_projection", "largest_hole"]

_FIT_ROWS = 4_000
_FIT_COLUMNS = 512
_CANDIDATES = 48
_SECTORS = 8
_RING_AREA = 3.0


@dataclass(frozen=True)
class Projection:
    """Standardises D dimensions and turns them onto their k leading principal components.

    `used` are the dimensions that vary (at most 512 of them, those first in order); `explained` the share of the
    standardised variance along each component.
    """

    used: Bool[np.ndarray, " D"]
    mean: Float64[np.ndarray, " d"]
    std: Float64[np.ndarray, " d"]
    axes: Float64[np.ndarray, "k d"]
    explained: Float64[np.ndarray, " k"]

    def __call__(self, rows: Float32[np.ndarray, "n D"]) -> Float64[np.ndarray, "n k"]:
        """Return the rows' components, shape `[n, k]`, in standard deviations of a dimension."""
        found: Float64[np.ndarray, "n k"] = ((rows[:, self.used] - self.mean) / self.std) @ self.axes.T
        return found

    def back(self, components: Float64[np.ndarray, " k"]) -> Float64[np.ndarray, " d"]:
        """Return the used dimensions, shape `[d]`, of a point given by its components."""
        found: Float64[np.ndarray, " d"] = self.mean + self.std * (components @ self.axes)
        return found


def fit_projection(rows: Float32[np.ndarray, "n D"], components: int) -> Projection | None:
    """Return the projection of rows, shape `[n, D]`, onto at most `components` components.

    None where fewer than two dimensions vary.
    """
    rows = rows[:: max(1, -(-len(rows) // _FIT_ROWS))]
    # Ties in float32 leave a standard deviation of rounding: compared bit for bit instead.
    used: Bool[np.ndarray, " D"] = (rows != rows[:1]).any(axis=0)
    used[np.flatnonzero(used)[_FIT_COLUMNS:]] = False
    if np.count_nonzero(used) < 2 or len(rows) < 3:
        return None
    chosen = rows[:, used].astype(np.float64)
    mean, std = chosen.mean(axis=0), chosen.std(axis=0)
    values, vectors = np.linalg.eigh(np.cov(((chosen - mean) / std).T))
    order = np.argsort(-values, kind="stable")[:components]
    axes = vectors[:, order].T
    # The sign of an eigenvector is the solver's whim: the largest weight is made positive.
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    explained = np.maximum(values[order], 0) / values.sum()
    return Projection(used, mean, std, axes * signs[:, None], explained)


@dataclass(frozen=True)
class Hole:
    """An empty disc in two components; `expected` points would lie in it, `around` are the nearest ones' rows."""

    center: tuple[float, float]
    radius: float
    expected: float
    around: list[int]


def largest_hole(points: Float64[np.ndarray, "n 2"]) -> Hole | None:
    """Return the empty disc that should hold the most of the points, shape `[n, 2]`.

    None where no disc has data on all sides.
    """
    if len(points) < 2 * _SECTORS:
        return None
    low, high = points.min(axis=0), points.max(axis=0)
    axes = [np.linspace(low[i], high[i], _CANDIDATES + 2)[1:-1] for i in range(2)]
    best: Hole | None = None
    for x in axes[0].tolist():
        for y in axes[1].tolist():
            offsets = points - (x, y)
            distances = np.hypot(offsets[:, 0], offsets[:, 1])
            radius = float(distances.min())
            ring = np.flatnonzero(distances <= 2 * radius)
            expected = len(ring) / _RING_AREA
            if best is not None and expected <= best.expected:
                continue
            angles = np.arctan2(offsets[ring, 1], offsets[ring, 0])
            sectors = np.unique(np.floor((angles / (2 * np.pi) + 0.5) * _SECTORS).astype(int) % _SECTORS)
            if len(sectors) == _SECTORS:
                around = ring[np.argsort(distances[ring], kind="stable")].tolist()
                best = Hole((x, y), radius, expected, around)
    return best
