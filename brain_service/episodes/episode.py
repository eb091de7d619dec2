"""A whole episode in memory: columns of arrays over time, whichever file it came from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from brain_service.episodes.schema import Step
from brain_service.errors import CorruptDataError
from brain_service.spec import EpisodeSpec, Feature, FeatureSpec, Leaf

__all__ = ["Column", "Episode", "episode_from_steps", "stack"]

Column = np.ndarray[Any, np.dtype[Any]] | list[str] | list[bytes]
"""One feature over an episode: `[T, *shape]` of the feature's dtype, T texts, or T images as PNG or JPEG files."""


@dataclass(frozen=True, slots=True)
class Episode:
    """T steps in time order. `action[i]` was chosen in `observation[i]`, `reward[i]` followed it.

    `end` is `terminated`, `truncated`, `recovered`, or None for a log that is still open. A terminated
    episode's last `is_terminal` is set even if only its end said so. `timestamp_ns` is 0 where a file of the
    seed has no time. `executed_action` is None if no step had one; steps without one repeat the commanded.
    """

    episode_id: str
    metadata: dict[str, Any]
    spec: EpisodeSpec
    observation: dict[str, Column]
    action: dict[str, Column]
    reward: Float32[np.ndarray, "T"]
    is_terminal: Bool[np.ndarray, "T"]
    timestamp_ns: Int64[np.ndarray, "T"]
    control_role: list[str]
    executed_action: dict[str, Column] | None
    final_observation: dict[str, Leaf] | None
    end: str | None

    def __len__(self) -> int:
        return len(self.control_role)


def stack(values: list[Any], feature: Feature) -> Column:
    """Stack T values of one feature into `[T, *shape]`, or return T texts or images.

    Raises:
        CorruptDataError: a value is not of the feature's kind or shape.
    """
    if not feature.is_numeric:
        kind = str if feature.dtype == "text" else bytes
        if not all(isinstance(value, kind) for value in values):
            raise CorruptDataError(f"a feature of dtype {feature.dtype} holds something else")
        return values
    try:
        return np.asarray(values, feature.dtype).reshape(len(values), *feature.shape)
    except (TypeError, ValueError, OverflowError) as error:
        raise CorruptDataError(f"not {feature.dtype} of shape {list(feature.shape)}: {error}") from error


def stack_all(columns: Mapping[str, list[Any]], spec: FeatureSpec, field: str) -> dict[str, Column]:
    """Stack the columns of every feature; `field` names the part in errors.

    Raises:
        CorruptDataError: a value does not fit the spec; the error names the feature.
    """
    found: dict[str, Column] = {}
    for path, feature in spec.items():
        try:
            found[path] = stack(columns[path], feature)
        except CorruptDataError as error:
            raise CorruptDataError(f"{field}/{path}: {error.detail}") from error
    return found


def episode_from_steps(
    episode_id: str,
    metadata: dict[str, Any],
    spec: EpisodeSpec,
    steps: Iterable[Step],
    final_observation: dict[str, Leaf] | None,
    end: str | None,
) -> Episode:
    """Turn checked steps (at least one) into columns.

    Raises:
        CorruptDataError: a step does not fit the spec.
    """
    taken = list(steps)
    executed = None
    if any(step.executed_action is not None for step in taken):
        columns = {path: [(step.executed_action or step.action)[path] for step in taken] for path in spec.action}
        executed = stack_all(columns, spec.action, "executed_action")
    is_terminal = np.array([step.is_terminal for step in taken], np.bool_)
    if end == "terminated":
        is_terminal[-1] = True
    return Episode(
        episode_id=episode_id,
        metadata=metadata,
        spec=spec,
        observation=stack_all(
            {path: [step.observation[path] for step in taken] for path in spec.observation},
            spec.observation,
            "observation",
        ),
        action=stack_all(
            {path: [step.action[path] for step in taken] for path in spec.action}, spec.action, "action"
        ),
        reward=np.array([step.reward for step in taken], np.float32),
        is_terminal=is_terminal,
        timestamp_ns=np.array([step.timestamp_ns for step in taken], np.int64),
        control_role=[step.control_role for step in taken],
        executed_action=executed,
        final_observation=final_observation,
        end=end,
    )
