"""How a model acts: its jumps, how often it is at its limits, late or not finite; and when that is a fault.

The same yardstick judges a model in shadow before a swap and on probation after it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from brain_service.export.bundle import Golden, Manifest
from brain_service.settings import RollbackSettings

if TYPE_CHECKING:
    from jaxtyping import Float32

__all__ = ["Conduct", "Usual", "fault", "usual_of_golden"]

_AT_LIMIT = 1e-5
_OUTSIDE = 1e-3
"""Shares of the action range: how near a limit counts as at it, and how far beyond it as outside."""

_SMALL_JUMP = 0.1
"""A step below this share of the action range is no jump, however still the model before was."""

_LIMIT, _JUMP, _LATE, _BROKEN = range(4)


@dataclass(frozen=True, slots=True)
class Usual:
    """What is expected of a model: share of action components at their limits, width of a wide step, late share.

    A step's width is the largest change of a component, as a share of its range; a wide one is wider than 95 % of
    all (one gripper that closes does not make every step after it look small).
    """

    limit_share: float = 0.0
    jump: float = 0.0
    late_share: float = 0.0


class Conduct:
    """The last `window` steps of one model: answered, late, or without a usable action.

    `steps` counts all of them ever, `answers` those with an action.
    """

    def __init__(self, manifest: Manifest, window: int) -> None:
        self.steps = 0
        self.answers = 0
        self._low = np.asarray(manifest.action_low, np.float32)
        self._high = np.asarray(manifest.action_high, np.float32)
        span = self._high - self._low
        # A component that cannot move is always at its limit and never jumps: it tells nothing.
        self._moves = span > 0
        self._span = np.where(self._moves, span, np.float32(1))
        self._ring = np.zeros((window, 4), np.float32)

    def answered(self, action: "Float32[np.ndarray, 'A']", previous: "Float32[np.ndarray, 'A'] | None") -> None:
        """Take in an action (raw units, shape `[A]`) and the session's one before it, None at its first step."""
        above, below = (self._high - action) / self._span, (action - self._low) / self._span
        room = np.minimum(above, below)[self._moves]
        if room.size and room.min() < -_OUTSIDE:
            self.broken()
            return
        row = self._next()
        row[_LIMIT] = np.count_nonzero(room <= _AT_LIMIT) / room.size if room.size else 0.0
        if previous is not None:
            row[_JUMP] = np.abs((action - previous) / self._span).max(initial=0.0)
        self.answers += 1

    def late(self) -> None:
        """Take in a step that missed its deadline."""
        self._next()[_LATE] = 1.0

    def broken(self) -> None:
        """Take in a step whose action was NaN, infinite or outside its limits."""
        self._next()[_BROKEN] = 1.0

    @property
    def judged(self) -> int:
        """Number of steps in the window."""
        return min(self.steps, len(self._ring))

    @property
    def broken_steps(self) -> int:
        """Steps in the window without a usable action."""
        return int(self._ring[:, _BROKEN].sum())

    def jump_share(self, wider_than: float) -> float:
        """Return the share of steps in the window that are wider than this share of the action range."""
        return float(np.count_nonzero(self._ring[:, _JUMP] > wider_than)) / max(self.judged, 1)

    @property
    def limit_share(self) -> float:
        """Share of action components in the window that are at a limit."""
        return float(self._ring[:, _LIMIT].sum()) / max(self.judged, 1)

    @property
    def late_share(self) -> float:
        """Share of steps in the window that missed their deadline."""
        return float(self._ring[:, _LATE].sum()) / max(self.judged, 1)

    def usual(self) -> Usual:
        """Sum up the window."""
        jumps = self._ring[: max(self.judged, 1), _JUMP]
        return Usual(self.limit_share, float(np.quantile(jumps, 0.95)), self.late_share)

    def _next(self) -> "Float32[np.ndarray, '4']":
        row: Float32[np.ndarray, "4"] = self._ring[self.steps % len(self._ring)]
        row[:] = 0.0
        self.steps += 1
        return row


def usual_of_golden(golden: Golden, manifest: Manifest) -> Usual:
    """Return what the reference outputs over inputs like the training data's do: the golden sequence's."""
    conduct = Conduct(manifest, len(golden.action))
    for t, chunk in enumerate(golden.action):
        follows = t > 0 and not golden.is_first[t]
        conduct.answered(chunk[0], golden.action[t - 1, 0] if follows else None)
    return conduct.usual()


def fault(conduct: Conduct, usual: Usual, settings: RollbackSettings) -> str | None:
    """Name what is wrong with a model's conduct, with the figure and its bound; None while nothing is."""
    if conduct.broken_steps >= settings.max_nonfinite:
        return (
            f"{conduct.broken_steps} of {conduct.judged} steps gave NaN, an infinity or an action outside its "
            f"limits, {settings.max_nonfinite} are too many"
        )
    if conduct.judged < settings.min_steps:
        return None
    wide = max(_SMALL_JUMP, settings.jump_factor * usual.jump)
    limit_bound = usual.limit_share + settings.max_limit_share
    late_bound = usual.late_share + settings.max_late_share
    for what, share, bound in (
        ("of the action components are at their limits", conduct.limit_share, limit_bound),
        (
            f"of the steps jump by more than {wide:.0%} of the range",
            conduct.jump_share(wide),
            settings.max_jump_share,
        ),
        ("of the steps missed their deadline", conduct.late_share, late_bound),
    ):
        if share > bound:
            return f"{share:.0%} {what}, {bound:.0%} are allowed ({conduct.judged} steps)"
    return None
