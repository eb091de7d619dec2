"""A step as it is posted, and the check that turns it into a log record."""

import operator
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np

from brain_service.episodes.header import EpisodeHeader, parse_role
from brain_service.episodes.log_format import json_ready
from brain_service.errors import InvalidError
from brain_service.spec import EpisodeSpec, Leaf, check_values, infer_spec
from brain_service.trees import flatten, unflatten

__all__ = ["Step", "StepIn", "StepMetadataIn", "check_step", "nest", "seconds_to_ns"]

_INT64 = range(-(2**63), 2**63)


class StepMetadataIn(msgspec.Struct, forbid_unknown_fields=True):
    """The seed's nested form of a step's time and place; the same names beside it mean the same.

    `timestamp` is the seed's: seconds since the epoch, as a float.
    """

    timestamp_ns: int | None = None
    step_index: int | None = None
    timestamp: float | None = None
    control_role: str | None = None
    policy: dict[str, Any] | None = None


class StepIn(msgspec.Struct, forbid_unknown_fields=True):
    """One step as a controller posts it. `reward` is what followed the action; times are int64 ns.

    Omitted: `step_index` is the next one, `timestamp_ns` is now, `control_role` is the episode's.
    """

    observation: dict[str, Any]
    action: dict[str, Any]
    step_index: int | None = None
    reward: float = 0.0
    is_terminal: bool = False
    timestamp_ns: int | None = None
    control_role: str | None = None
    executed_action: dict[str, Any] | None = None
    policy: dict[str, Any] | None = None
    step_metadata: StepMetadataIn | None = None
    episode_id: str | None = None

    def index(self) -> int | None:
        """Return the step index from either place, or None if it was omitted.

        Raises:
            InvalidError: it is given in both places, and they differ.
        """
        nested = None if self.step_metadata is None else self.step_metadata.step_index
        if self.step_index is None:
            return nested
        if nested not in (None, self.step_index):
            raise InvalidError(
                f"step_index {self.step_index} and step_metadata/step_index {nested} contradict each other; "
                "give one of them",
                field="step_metadata/step_index",
            )
        return self.step_index

    def time_ns(self) -> int | None:
        """Return the time of the step from either place in nanoseconds, or None if it was omitted.

        Raises:
            InvalidError: the seed's float `timestamp` is NaN or infinite.
        """
        nested = self.step_metadata
        if self.timestamp_ns is not None or nested is None:
            return self.timestamp_ns
        if nested.timestamp_ns is None and nested.timestamp is not None:
            return seconds_to_ns(nested.timestamp, "step_metadata/timestamp")
        return nested.timestamp_ns


@dataclass(frozen=True, slots=True)
class Step:
    """A checked step: leaves by path, as arrays of the spec's dtypes; `reward` is finite in float32."""

    step_index: int
    observation: dict[str, Leaf]
    action: dict[str, Leaf]
    reward: np.float32
    is_terminal: bool
    timestamp_ns: int
    control_role: str
    executed_action: dict[str, Leaf] | None = None
    policy: dict[str, Any] | None = None

    def record(self, episode_id: str) -> dict[str, Any]:
        """Return the step as its log record."""
        record: dict[str, Any] = {
            "type": "step",
            "observation": nest(self.observation),
            "action": nest(self.action),
            "reward": json_ready(self.reward),
            "is_terminal": self.is_terminal,
        }
        if self.executed_action is not None:
            record["executed_action"] = nest(self.executed_action)
        metadata: dict[str, Any] = {
            "timestamp_ns": self.timestamp_ns,
            "step_index": self.step_index,
            "control_role": self.control_role,
        }
        if self.policy is not None:
            metadata["policy"] = self.policy
        record["step_metadata"] = metadata
        record["episode_id"] = episode_id
        return record


def seconds_to_ns(seconds: float, field: str) -> int:
    """Return a float time in seconds as integer ns, exactly: `1.7e9 * 1e9` in floats is off by up to 128 ns.

    Raises:
        InvalidError: NaN or an infinity.
    """
    try:
        return round(Fraction(seconds) * 1_000_000_000)
    except (OverflowError, ValueError) as error:
        raise InvalidError(f"{field}: {seconds!r} is no time in seconds", field=field) from error


def nest(values: Mapping[str, Leaf]) -> dict[str, Any]:
    """Return leaves by path as nested maps that `encode_line` can write."""
    return unflatten({path: json_ready(leaf) for path, leaf in values.items()})


def check_step(
    body: StepIn, header: EpisodeHeader, spec: EpisodeSpec | None, step_index: int, prefix: str = ""
) -> tuple[Step, EpisodeSpec]:
    """Hold a posted step against the episode; `spec` None means that this step fixes it.

    `prefix` (`steps/3/` in a batch) goes before the field names in errors.

    Raises:
        InvalidError: a wrong name, shape, dtype, role or number, NaN or an infinity; the error names the field.
    """
    observation = flatten(body.observation, f"{prefix}observation")
    action = flatten(body.action, f"{prefix}action")
    if spec is None:
        spec = EpisodeSpec(infer_spec(observation, f"{prefix}observation"), infer_spec(action, f"{prefix}action"))
    executed = None
    if body.executed_action is not None:
        name = f"{prefix}executed_action"
        executed = check_values(flatten(body.executed_action, name), spec.action, name)
    if body.episode_id is not None and body.episode_id != header.episode_id:
        raise InvalidError(
            f"{prefix}episode_id: {body.episode_id!r} is not {header.episode_id!r}, the one it was posted to",
            field=f"{prefix}episode_id",
        )
    nested = body.step_metadata or StepMetadataIn()
    role = body.control_role or nested.control_role
    step = Step(
        step_index=step_index,
        observation=check_values(observation, spec.observation, f"{prefix}observation"),
        action=check_values(action, spec.action, f"{prefix}action"),
        reward=_check_reward(body.reward, f"{prefix}reward"),
        is_terminal=body.is_terminal,
        timestamp_ns=_check_time(body.time_ns(), f"{prefix}timestamp_ns"),
        control_role=header.control_role if role is None else parse_role(role, f"{prefix}control_role"),
        executed_action=executed,
        policy=body.policy if body.policy is not None else nested.policy,
    )
    return step, spec


def _check_reward(reward: float, field: str) -> np.float32:
    with np.errstate(over="ignore"):
        value = np.float32(reward)
    if not np.isfinite(value):
        raise InvalidError(f"{field}: {reward!r} is NaN, infinite or beyond float32", field=field)
    return value


def _check_time(timestamp_ns: int | None, field: str) -> int:
    if timestamp_ns is None:
        return time.time_ns()
    try:
        # NumPy's integers too: `in` would walk the whole range for anything but Python's own.
        exact_ns = operator.index(timestamp_ns)
    except TypeError as error:
        raise InvalidError(f"{field}: {timestamp_ns!r} is no integer of nanoseconds", field=field) from error
    if exact_ns not in _INT64:
        raise InvalidError(f"{field}: {exact_ns} is beyond int64 nanoseconds", field=field)
    return exact_ns
