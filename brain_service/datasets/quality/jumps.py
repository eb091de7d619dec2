"""Action jumps: |a_t - a_{t-1}| of each dimension against its own distribution, and against a rate limit."""

import msgspec
import numpy as np
from jaxtyping import Float64

from brain_service.datasets.quality.findings import Finding, Worst, name_some
from brain_service.datasets.quality.limits import Limits
from brain_service.datasets.quality.sample import Sample
from brain_service.datasets.quality.view import Dimensions, EpisodeView, step_changes

__all__ = ["Jump", "JumpFinder", "Jumps"]

# A normal distribution's standard deviation in median absolute deviations.
_MAD_TO_STD = 1.4826
MAX_LEVELS = 3
"""A dimension of so few values is a switch (a gripper, a mode), which is meant to jump."""


class Jump(msgspec.Struct, frozen=True):
    """Changes of one action dimension from step to step, in its unit.

    Above `limit` a change is a jump; None = a switch, which may jump.
    """

    name: str
    median: float
    robust_std: float
    largest: float
    largest_z: float
    limit: float | None
    largest_rate_per_s: float


class Jumps(msgspec.Struct, frozen=True):
    """All float dimensions of the action."""

    dimensions: list[Jump]


class JumpFinder:
    """Takes episodes one by one; keeps the largest changes of each dimension."""

    def __init__(self, action: Dimensions, limits: Limits) -> None:
        self._limits = limits
        # Flags and modes are meant to jump.
        self._columns = np.array(
            [
                i
                for slot in action.slots
                if slot.is_float and not slot.pooled
                for i in range(slot.start, slot.stop)
            ],
            np.int64,
        )
        self._names = [action.names[i] for i in self._columns]
        self._all = len(self._columns) == len(action)
        self._worst = Worst(len(self._columns))
        self._rates = Worst(len(self._columns))
        self._rate = np.zeros(len(self._columns))

    def add(self, view: EpisodeView) -> None:
        """Take one episode's actions."""
        action = view.action if self._all else view.action[:, self._columns]
        if len(action) < 2 or not len(self._columns):
            return
        changes = step_changes(action)
        at = changes.argmax(axis=0)
        largest = changes[at, np.arange(changes.shape[1])]
        self._worst.add(view.position, largest, at + 1)
        seconds = np.diff(view.timestamp_ns[view.valid]) / 1e9
        # Without time between two steps there is no rate; the time's own measures tell of such steps.
        rates = np.divide(changes, seconds[:, None], out=np.zeros(changes.shape), where=(seconds > 0)[:, None])
        rates = np.minimum(rates, np.finfo(np.float32).max).astype(np.float32)
        at = rates.argmax(axis=0)
        fastest = rates[at, np.arange(rates.shape[1])]
        self._rates.add(view.position, fastest, at + 1)
        self._rate = np.maximum(self._rate, fastest)

    def result(self, sample: Sample) -> Jumps:
        """Return the figures of each dimension."""
        median, spread, limit = self._distribution(sample)
        figures = []
        for i, name in enumerate(self._names):
            kept = self._worst.above(i, -1.0)
            largest = kept[0][0] if kept else 0.0
            z = (largest - median[i]) / spread[i] if spread[i] else 0.0
            figures.append(
                Jump(
                    name=name,
                    median=float(median[i]),
                    robust_std=float(spread[i]),
                    largest=largest,
                    largest_z=float(z),
                    limit=float(limit[i]) if np.isfinite(limit[i]) else None,
                    largest_rate_per_s=float(self._rate[i]),
                )
            )
        return Jumps(figures)

    def findings(self, jumps: Jumps, names: list[str]) -> list[Finding]:
        """Return jumps and rates beyond their limits; `names` are the episodes' ids."""
        found = []
        for i, jump in enumerate(jumps.dimensions):
            worst = [] if jump.limit is None else self._worst.above(i, jump.limit)
            if worst:
                episodes = list(dict.fromkeys(names[episode] for _, episode, _ in worst))
                found.append(
                    Finding(
                        code="action_jump",
                        severity="warn",
                        message=f"{jump.name} jumps by {jump.largest:.4g} at step {worst[0][2]} of {episodes[0]} "
                        f"(usual {jump.median:.3g}, robust z {jump.largest_z:.0f})"
                        + (f"; also in {name_some(episodes[1:])}" if episodes[1:] else ""),
                        fix="look at these steps: a lost packet, a mode switch or a wrapped angle; "
                        "leave the episodes out or smooth the command at its source",
                        episodes=episodes,
                        feature=jump.name,
                        value=jump.largest,
                        limit=jump.limit,
                    )
                )
            if self._limits.max_action_rate:
                found += self._rate_finding(i, jump, names)
        return found

    def _rate_finding(self, column: int, jump: Jump, names: list[str]) -> list[Finding]:
        limit = self._limits.max_action_rate
        worst = self._rates.above(column, limit)
        if not worst:
            return []
        episodes = list(dict.fromkeys(names[episode] for _, episode, _ in worst))
        return [
            Finding(
                code="action_rate",
                severity="warn",
                message=f"{jump.name} changes by {worst[0][0]:.4g} a second at step {worst[0][2]} of "
                f"{episodes[0]}, the limit is {limit:g}"
                + (f"; also in {name_some(episodes[1:])}" if episodes[1:] else ""),
                fix="limit the rate where the command is made; the robot cannot follow what it is asked here",
                episodes=episodes,
                feature=jump.name,
                value=worst[0][0],
                limit=limit,
            )
        ]

    def _distribution(
        self, sample: Sample
    ) -> tuple[Float64[np.ndarray, " a"], Float64[np.ndarray, " a"], Float64[np.ndarray, " a"]]:
        """Return the median, robust standard deviation and jump limit of each dimension."""
        # In float64: the mean of two extremes must not overflow.
        changes = sample.changes[:, self._columns].astype(np.float64)
        action = sample.action[:, self._columns].astype(np.float64)
        figures = [_limit(changes[:, i], action[:, i], self._limits) for i in range(len(self._columns))]
        median, spread, limit = np.array(figures, np.float64).reshape(-1, 3).T
        return median, spread, limit


def _limit(
    changes: Float64[np.ndarray, " c"], action: Float64[np.ndarray, " k"], limits: Limits
) -> tuple[float, float, float]:
    """Return the median change, its robust standard deviation, and from where on a change is a jump."""
    moving = changes[changes > 0]
    if not len(moving) or len(np.unique(action)) <= MAX_LEVELS:
        return 0.0, 0.0, float("inf")
    # A command that holds its value most of the time is judged by its changes alone.
    judged = moving if len(moving) < len(changes) / 2 else changes
    median = float(np.median(judged))
    spread = _MAD_TO_STD * float(np.median(np.abs(judged - median)))
    # "lower": with few samples an interpolated quantile would be pulled up by the very jump it should find.
    usual = float(np.quantile(judged, 0.98, method="lower"))
    span = float(np.quantile(action, 0.99) - np.quantile(action, 0.01))
    limit = max(
        median + limits.max_jump_z * spread, limits.min_jump_ratio * usual, limits.min_jump_range_share * span
    )
    return median, spread, limit
