"""Between raw units and the model's: observations to zero mean and unit spread, actions to [-1, 1]."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Float32

from brain_service.datasets.statistics import Statistics
from brain_service.errors import CorruptDataError, InvalidError

__all__ = ["CLIP", "Normaliser"]

CLIP = 10.0
"""Normalised observations and rewards are cut to +-CLIP: a broken sensor must not throw the model off its feet."""

STD_FLOOR = 1e-3  # raw units; what varies less is taken as constant instead of having its noise blown up
RANGE_FLOOR = 1e-6  # raw units; an action that never moved keeps its own units


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
    def from_statistics(cls, statistics: Statistics) -> "Normaliser":
        """Take the scales from a dataset's statistics.

        Raises:
            InvalidError: a figure or the actions' range is not finite, or observation or action hold no numbers.
        """
        deviation = statistics.vector("observation", "std")
        normaliser = cls(
            observation_mean=statistics.vector("observation", "mean"),
            observation_std=np.maximum(deviation, np.float32(STD_FLOOR)),
            action_low=statistics.vector("action", "min"),
            action_high=statistics.vector("action", "max"),
            reward_mean=np.asarray(statistics.reward.mean, np.float32),
            reward_std=np.maximum(np.asarray(statistics.reward.std, np.float32), np.float32(STD_FLOOR)),
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
