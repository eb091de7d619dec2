"""Between raw units and the model's: observations to zero mean and unit spread, actions to [-1, 1]."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Float32

from brain_service.datasets.statistics import Statistics
from brain_service.errors import CorruptDataError, InvalidError

__all__ = ["CLIP", "RANGE_FLOOR", "Normaliser"]

CLIP = 10.0
"""Normalised observations and rewards are cut to +-CLIP: a broken sensor must not throw the model off its feet."""

STD_FLOOR = 1e-3  # raw units; of what varies less the noise is not blown up
RANGE_FLOOR = 1e-6
"""Half a range, in raw units, up to which an action counts as one that never moved and keeps its own units."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Normaliser:
    """Per-element scales, taken from the training split only. Vectors are in `spec.to_vector` order.

    The methods take NumPy or JAX arrays and return the same kind, so the exported step contains the very same
    arithmetic as training.
    """

    observation_mean: Float32[np.ndarray, "D"]
    observation_std: Float32[np.ndarray, "D"]
    action_low: Float32[np.ndarray, "A"]
    """Least recorded action: the lower limit of what is ever answered."""
    action_high: Float32[np.ndarray, "A"]
    """Greatest recorded action."""
    reward_mean: Float32[np.ndarray, "1"]
    reward_std: Float32[np.ndarray, "1"]

    @classmethod
    def from_statistics(cls, statistics: Statistics, choices: int = 0) -> "Normaliser":
        """Take the scales from a dataset's statistics; with `choices` each action element is an index below it.

        Raises:
            InvalidError: a figure or the actions' range is not finite, observation or action hold no numbers, or
                an action is none of the choices.
        """
        low, high = statistics.vector("action", "min"), statistics.vector("action", "max")
        if choices and low.size and not 0 <= low.min() <= high.max() <= choices - 1:
            raise InvalidError(
                f"action: recorded from {low.min():g} to {high.max():g}, and the choices are 0 to {choices - 1}; "
                "set the model's action_choices to one more than the greatest, and record indices from 0",
                field="model",
            )
        seen, reward = partial(statistics.vector, "observation"), statistics.reward
        normaliser = cls(
            observation_mean=seen("mean"),
            observation_std=_spread(seen("mean"), seen("std"), seen("min"), seen("max")),
            # All choices, not those that happen to be recorded: the model's are spaced evenly over the range.
            action_low=np.zeros_like(low) if choices else low,
            action_high=np.full_like(high, choices - 1) if choices else high,
            reward_mean=np.asarray(reward.mean, np.float32),
            reward_std=_spread(
                *(np.asarray(part, np.float32) for part in (reward.mean, reward.std, reward.min, reward.max))
            ),
        )
        for name, values in normaliser.to_dict().items():
            if not values:
                raise InvalidError(f"{name}: the dataset has only text there; record numbers", field=name)
            if not np.isfinite(values).all():
                raise InvalidError(f"{name}: the dataset's statistics hold NaN or an infinity", field=name)
        with np.errstate(over="ignore"):
            if not np.isfinite([normaliser.action_scale, normaliser.action_centre]).all():
                raise InvalidError(
                    "action: its recorded range is beyond float32; check its units, delete the episodes that are "
                    "wrong and convert again",
                    field="action",
                )
        return normaliser

    @property
    def action_centre(self) -> Float32[np.ndarray, "A"]:
        """Action that becomes 0, in raw units, shape `[A]`."""
        centre: Float32[np.ndarray, "A"] = (self.action_high + self.action_low) / np.float32(2)
        return centre

    @property
    def action_scale(self) -> Float32[np.ndarray, "A"]:
        """Raw units of one normalised unit, shape `[A]`: half the recorded range, 1 where it never moved."""
        half: Float32[np.ndarray, "A"] = (self.action_high - self.action_low) / np.float32(2)
        return np.where(half > RANGE_FLOOR, half, np.float32(1)).astype(np.float32)

    def observation(self, raw: Float32[Array | np.ndarray, "*B D"]) -> Float32[Array | np.ndarray, "*B D"]:
        """Normalise raw observations, shape `[..., D]`, to zero mean and unit spread, cut to +-CLIP."""
        return ((raw - self.observation_mean) / self.observation_std).clip(-CLIP, CLIP)

    def reward(self, raw: Float32[Array | np.ndarray, "*B"]) -> Float32[Array | np.ndarray, "*B"]:
        """Normalise raw rewards, of any shape, to zero mean and unit spread, cut to +-CLIP."""
        scaled: Array | np.ndarray[Any, Any] = (raw - self.reward_mean[0]) / self.reward_std[0]
        return scaled.clip(-CLIP, CLIP)

    def action(self, raw: Float32[Array | np.ndarray, "*B A"]) -> Float32[Array | np.ndarray, "*B A"]:
        """Normalise raw actions, shape `[..., A]`; recorded ones come to lie in [-1, 1]."""
        return (raw - self.action_centre) / self.action_scale

    def raw_action(self, normalised: Float32[Array | np.ndarray, "*B A"]) -> Float32[Array | np.ndarray, "*B A"]:
        """Return normalised actions, shape `[..., A]`, in raw units, cut to the recorded limits."""
        return (normalised * self.action_scale + self.action_centre).clip(self.action_low, self.action_high)

    def to_dict(self) -> dict[str, list[float]]:
        """Return the figures as lists of numbers that read back exactly: the inverse of `from_dict`."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Normaliser":
        """Rebuild from `to_dict`'s mapping.

        Raises:
            CorruptDataError: a figure is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if set(document) != names:
            wrong = sorted(set(document) ^ names)
            raise CorruptDataError(f"normalisation: {', '.join(wrong)} missing or unknown")
        return cls(**{name: np.asarray(values, np.float32) for name, values in document.items()})


def _spread(
    mean: Float32[np.ndarray, "D"],
    std: Float32[np.ndarray, "D"],
    low: Float32[np.ndarray, "D"],
    high: Float32[np.ndarray, "D"],
) -> Float32[np.ndarray, "D"]:
    # What never varied keeps its own units, or its size: nothing was learned of it, and in units of the floor the
    # first that it moves (a reward that a client leaves out) would be CLIP.
    own = np.maximum(np.abs(mean), 1.0)
    spread: Float32[np.ndarray, "D"] = np.where(high > low, np.maximum(std, STD_FLOOR), own).astype(np.float32)
    return spread
