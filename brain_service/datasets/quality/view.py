"""One episode as the measures see it: flat float32 rows, one column a dimension."""

from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Bool, Float32, Int64

from brain_service.datasets.columns import Columns, Profile, valid_transitions
from brain_service.datasets.manifest import EpisodeEntry
from brain_service.spec import EpisodeSpec, FeatureSpec

__all__ = ["Dimensions", "EpisodeView", "Slot", "both", "step_changes", "view_episode"]

MAX_ELEMENTS = 256
"""A larger feature (a raw image) is no set of sensors: its minimum, mean and maximum of each step stand for it."""

_SUMMARIES = ("min", "mean", "max")
_LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class Slot:
    """The columns `start` to `stop` that one feature fills."""

    feature: str
    start: int
    stop: int
    is_float: bool
    pooled: bool


class Dimensions:
    """The columns of one part of a spec (`observation` or `action`): numeric features in sorted path order."""

    def __init__(self, part: str, spec: FeatureSpec) -> None:
        self.slots: list[Slot] = []
        self.names: list[str] = []
        for path, feature in spec.items():
            if not feature.is_numeric:
                continue
            name, count = f"{part}/{path}", prod(feature.shape)
            pooled = count > MAX_ELEMENTS
            if pooled:
                names = [f"{name}[{summary}]" for summary in _SUMMARIES]
            elif feature.shape:
                names = [f"{name}[{','.join(map(str, index))}]" for index in np.ndindex(*feature.shape)]
            else:
                names = [name]
            start = len(self.names)
            self.names += names
            self.slots.append(Slot(name, start, len(self.names), feature.dtype == "float32", pooled))

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, columns: Columns, length: int) -> Float32[np.ndarray, "T n"]:
        """Return an episode's values, shape `[T, n]`, as float32: as a model sees them."""
        parts = [np.zeros((length, 0), np.float32)]
        for slot in self.slots:
            column = columns[slot.feature]
            assert isinstance(column, np.ndarray)  # numeric by its feature
            flat = column.reshape(length, -1)
            if slot.pooled:
                flat = np.stack([flat.min(axis=1), flat.mean(axis=1), flat.max(axis=1)], axis=1)
            parts.append(flat.astype(np.float32, copy=False))
        return parts[1] if len(parts) == 2 else np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class EpisodeView:
    """One episode: T stored steps, of which `valid` ones have an action and a reward that mean something.

    `position` counts episodes over all measured splits. In `observation` and `action` what is not finite was
    replaced by 0 and is counted by dimension in `not_finite`, observation dimensions first.
    """

    position: int
    split: str
    entry: EpisodeEntry
    columns: Columns
    observation: Float32[np.ndarray, "T D"]
    action: Float32[np.ndarray, "V A"]
    reward: Float32[np.ndarray, " V"]
    valid: Bool[np.ndarray, " T"]
    timestamp_ns: Int64[np.ndarray, " T"]
    not_finite: Int64[np.ndarray, " n"]

    @property
    def episode_id(self) -> str:
        """The episode's id."""
        return self.entry.episode_id

    def __len__(self) -> int:
        return self.entry.length


def view_episode(
    position: int,
    split: str,
    entry: EpisodeEntry,
    columns: Columns,
    parts: tuple[Dimensions, Dimensions],
    profile: Profile,
) -> EpisodeView:
    """Return an episode's view; `parts` are the dimensions of observation and action."""
    is_last, times, reward = columns["is_last"], columns["timestamp_ns"], columns["reward"]
    assert isinstance(is_last, np.ndarray) and isinstance(times, np.ndarray) and isinstance(reward, np.ndarray)
    valid = valid_transitions(is_last, profile)
    observation, bad_observation = _finite(parts[0].rows(columns, entry.length))
    action = parts[1].rows(columns, entry.length)
    action, bad_action = _finite(action if valid.all() else action[valid])
    return EpisodeView(
        position=position,
        split=split,
        entry=entry,
        columns=columns,
        observation=observation,
        action=action,
        reward=reward[valid],
        valid=valid,
        timestamp_ns=times,
        not_finite=np.concatenate([bad_observation, bad_action]),
    )


def _finite(rows: Float32[np.ndarray, "T n"]) -> tuple[Float32[np.ndarray, "T n"], Int64[np.ndarray, " n"]]:
    good = np.isfinite(rows)
    if good.all():
        return rows, np.zeros(rows.shape[1], np.int64)
    return np.where(good, rows, np.float32(0)), np.count_nonzero(~good, axis=0).astype(np.int64)


def step_changes(rows: Float32[np.ndarray, "T n"]) -> Float32[np.ndarray, "t n"]:
    """Return how far each row but the first is from the one before, dimension by dimension, shape `[T - 1, n]`.

    Beyond the largest float32 it is that: a sensor that jumps from one end of its type to the other.
    """
    with np.errstate(over="ignore"):
        changes: Float32[np.ndarray, "t n"] = np.abs(rows[1:] - rows[:-1])
    return changes.clip(max=_LARGEST, out=changes)


def both(spec: EpisodeSpec) -> tuple[Dimensions, Dimensions]:
    """Return the dimensions of observation and action."""
    return Dimensions("observation", spec.observation), Dimensions("action", spec.action)
