"""Coverage: which states the dataset holds, where it has holes, and whether held-out states are near it.

Two clouds are looked at in the leading principal components of standardised observations: all sampled states, and
where episodes end, since a goal that no episode reached is a goal that a policy will miss. The search for holes is
over ends alone: states of one episode depend on each other, its end is one draw.
"""

from itertools import combinations

import msgspec
import numpy as np
from jaxtyping import Float64, Int64

from brain_service.datasets.quality.findings import Finding, name_some
from brain_service.datasets.quality.limits import Limits
from brain_service.datasets.quality.projection import Hole, Projection, fit_projection, largest_hole
from brain_service.datasets.quality.sample import Sample

__all__ = ["Coverage", "HoleFigures", "measure_coverage"]

GRID = 32
_COMPONENTS = 16
_END_COMPONENTS = 3
_TRAIN_STATES = 5_000
_ASKED_STATES = 2_000
_FAR_QUANTILE = 0.99
_CHUNK = 256


class HoleFigures(msgspec.Struct, frozen=True):
    """A hole among the ends of episodes, in components `axes` (from 0) of the ends.

    `expected_episodes` would end there if the density around it went on; `place` gives its centre in the
    dimensions that weigh most, in their own units.
    """

    axes: tuple[int, int]
    center: tuple[float, float]
    radius: float
    expected_episodes: float
    place: dict[str, float]
    nearest_episodes: list[str]


class Coverage(msgspec.Struct, frozen=True):
    """`grid[y][x]` counts sampled states in equal cells over the first two components; `extent` is its range.

    `extent` is `[x low, x high, y low, y high]` in standard deviations. Points are `[x, y]`. `far_share` is the
    share of held-out states farther from training than `far_distance`, which 1 % of the training states are from
    all other training episodes. Empty or None where there was too little to measure.
    """

    components: list[str] = []
    explained: list[float] = []
    extent: list[float] = []
    grid: list[list[int]] = []
    occupied_share: float = 0.0
    val_points: list[list[float]] = []
    end_components: list[str] = []
    end_points: list[list[float]] = []
    hole: HoleFigures | None = None
    far_distance: float | None = None
    far_share: float | None = None
    median_distance: float | None = None


def measure_coverage(
    sample: Sample, dimensions: list[str], names: list[str], limits: Limits
) -> tuple[Coverage, list[Finding]]:
    """Return the coverage and what is wrong with it; `names` are the ids of the episodes by position."""
    states = fit_projection(sample.observation, _COMPONENTS)
    if states is None:
        return Coverage(), []
    projected = states(sample.observation)
    extent, grid = _grid(projected)
    ends = fit_projection(sample.ends, _END_COMPONENTS)
    hole, points = _hole(sample, ends, dimensions, names)
    far_distance, distances = _distances(projected, sample)
    findings = (
        [] if hole is None or hole.expected_episodes <= limits.min_hole_episodes else [_hole_finding(hole, limits)]
    )
    far_share = None
    if distances is not None and far_distance is not None:
        far_share = float((distances > far_distance).mean())
        if far_share > limits.max_far_share:
            findings.append(_far_finding(sample, distances, far_distance, far_share, names, limits))
    coverage = Coverage(
        components=_component_names(states, dimensions),
        explained=states.explained.tolist(),
        extent=extent,
        grid=grid.tolist(),
        occupied_share=float((grid > 0).mean()),
        val_points=_thin(projected[sample.is_val][:, :2]),
        end_components=_component_names(ends, dimensions) if ends else [],
        end_points=_thin(points),
        hole=hole,
        far_distance=far_distance,
        far_share=far_share,
        median_distance=None if distances is None else float(np.median(distances)),
    )
    return coverage, findings


def _thin(points: Float64[np.ndarray, "n k"], most: int = 500) -> list[list[float]]:
    kept = points[:: max(1, -(-len(points) // most))]
    found: list[list[float]] = np.round(kept, 4).tolist()
    return found


def _grid(points: Float64[np.ndarray, "n k"]) -> tuple[list[float], Int64[np.ndarray, "g g"]]:
    """Return the extent and counts over the first two components; the outermost 0.5 % fall in border cells."""
    low, high = np.quantile(points[:, :2], (0.005, 0.995), axis=0)
    high = np.where(high > low, high, low + 1)
    cells = np.clip((points[:, :2] - low) / (high - low) * GRID, 0, GRID - 1).astype(np.int64)
    counts = np.bincount(cells[:, 1] * GRID + cells[:, 0], minlength=GRID * GRID)
    return [float(low[0]), float(high[0]), float(low[1]), float(high[1])], counts.reshape(GRID, GRID)


def _component_names(projection: Projection, dimensions: list[str]) -> list[str]:
    """Return for each of the leading components the three dimensions that weigh most in it."""
    used = np.flatnonzero(projection.used)
    return [
        ", ".join(dimensions[used[i]] for i in np.argsort(-np.abs(axis), kind="stable")[:3])
        for axis in projection.axes[:_END_COMPONENTS]
    ]


def _hole(
    sample: Sample, projection: Projection | None, dimensions: list[str], names: list[str]
) -> tuple[HoleFigures | None, Float64[np.ndarray, "m k"]]:
    """Return the largest hole over all pairs of the ends' components, and the ends' components."""
    if projection is None:
        return None, np.zeros((0, 2))
    points = projection(sample.ends)
    best: tuple[Hole, tuple[int, int]] | None = None
    for axes in combinations(range(points.shape[1]), 2):
        hole = largest_hole(points[:, axes])
        if hole is not None and (best is None or hole.expected > best[0].expected):
            best = hole, axes
    if best is None:
        return None, points
    hole, axes = best
    components = points.mean(axis=0)
    components[list(axes)] = hole.center
    place = projection.back(components)
    weights = np.abs(projection.axes[list(axes)]).max(axis=0)
    used = np.flatnonzero(projection.used)
    heaviest = np.argsort(-weights, kind="stable")[:4]
    return (
        HoleFigures(
            axes=axes,
            center=hole.center,
            radius=hole.radius,
            expected_episodes=hole.expected,
            place={dimensions[used[i]]: round(float(place[i]), 6) for i in sorted(heaviest.tolist())},
            nearest_episodes=[names[sample.end_episode[row]] for row in hole.around[:8]],
        ),
        points,
    )


def _hole_finding(hole: HoleFigures, limits: Limits) -> Finding:
    place = ", ".join(f"{name} = {value:.4g}" for name, value in hole.place.items())
    return Finding(
        code="coverage_hole",
        severity="warn",
        message=f"no episode ends around {place}, where about {hole.expected_episodes:.0f} would if the density "
        f"around it went on; nearest are {name_some(hole.nearest_episodes)}",
        fix="record episodes that end there: a policy is worst where its data has a hole between what it knows",
        episodes=hole.nearest_episodes,
        value=hole.expected_episodes,
        limit=limits.min_hole_episodes,
    )


def _distances(
    projected: Float64[np.ndarray, "n k"], sample: Sample
) -> tuple[float | None, Float64[np.ndarray, " v"] | None]:
    """Return the distance that 1 % of training states exceed, and that of each asked held-out state."""
    train, val = np.flatnonzero(~sample.is_val), np.flatnonzero(sample.is_val)
    if len(np.unique(sample.episode[train])) < 3 or not len(val):
        return None, None
    known, asked = _spread(train, _TRAIN_STATES), _asked(val)
    references = _spread(train, _ASKED_STATES)
    own = _nearest(projected, sample.episode, references, known)
    return float(np.quantile(own, _FAR_QUANTILE)), _nearest(projected, sample.episode, asked, known)


def _asked(val: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " v"]:
    return _spread(val, _ASKED_STATES)


def _spread(rows: Int64[np.ndarray, " n"], most: int) -> Int64[np.ndarray, " m"]:
    return rows[:: max(1, -(-len(rows) // most))]


def _nearest(
    projected: Float64[np.ndarray, "n k"],
    episode: Int64[np.ndarray, " n"],
    asked: Int64[np.ndarray, " a"],
    known: Int64[np.ndarray, " b"],
) -> Float64[np.ndarray, " a"]:
    """Return each asked state's distance to the nearest known one of another episode."""
    points = projected[known]
    lengths = (points**2).sum(axis=1)
    found = []
    for start in range(0, len(asked), _CHUNK):
        rows = asked[start : start + _CHUNK]
        queries = projected[rows]
        squared = (queries**2).sum(axis=1)[:, None] + lengths - 2 * queries @ points.T
        squared[episode[rows][:, None] == episode[known]] = np.inf
        found.append(np.sqrt(np.maximum(squared.min(axis=1), 0)))
    return np.concatenate(found)


def _far_finding(
    sample: Sample,
    distances: Float64[np.ndarray, " v"],
    far_distance: float,
    far_share: float,
    names: list[str],
    limits: Limits,
) -> Finding:
    episode = sample.episode[_asked(np.flatnonzero(sample.is_val))]
    counts = np.bincount(episode[distances > far_distance])
    worst = [names[i] for i in np.argsort(-counts, kind="stable") if counts[i]]
    return Finding(
        code="val_far_from_train",
        severity="warn",
        message=f"{far_share:.0%} of the held-out states lie farther from training than 99 % of the training "
        f"states lie from each other, most of them in {name_some(worst)}",
        fix="record more like these episodes; until then validation asks for what training never showed",
        episodes=worst,
        value=far_share,
        limit=limits.max_far_share,
    )
