"""The short way of a step into the log: bytes straight into typed arrays, one check, one line.

A codec is made for the spec of an episode. It takes the steps that a robot sends all day, or that a recorder in
its own process gives as float32 arrays, and gives up on everything else (`None`): a wrong type, name or shape,
huge numbers, members that are rare. What it gives up on goes through `check_step`, which decides and words the
error. What it takes `check_step` takes too, and the line is the same, byte for byte.
"""

import operator
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from brain_service.episodes.header import CONTROL_ROLES, EpisodeHeader
from brain_service.episodes.leaves import StepTypes, step_types
from brain_service.episodes.log_format import ROUNDS_TWICE, encode_line
from brain_service.episodes.schema import Step, StepIn
from brain_service.episodes.wire import BodyKind, Piece
from brain_service.errors import InvalidError
from brain_service.spec import EpisodeSpec, Feature, Leaf
from brain_service.trees import unflatten

__all__ = ["StepCodec", "Taken"]

# While the squares sum up to less, nothing is NaN or infinite, nor a whole number beyond 2^53, which the general
# path reads as an int64 and may round otherwise.
_LARGEST_SQUARES = 1e30
_ROUNDS_TWICE = tuple(struct.pack("<f", sign * ROUNDS_TWICE) for sign in (1, -1))
_GAVE_UP = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError, struct.error)
_FLOAT32 = np.dtype(np.float32)
_ROLES = frozenset((None, *CONTROL_ROLES))

Getter = Callable[[Any], Sequence[Any]]


class Taken(msgspec.Struct, frozen=True):
    """Steps whose values fit their spec; they have no place in the episode yet."""

    steps: Sequence[Any]
    floats: np.ndarray[Any, np.dtype[np.float32]]
    """`[steps, floats + 1]`: the float32 leaves of each step side by side, then its reward."""

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def is_terminal(self) -> bool:
        """Whether the last step is."""
        return bool(self.steps[-1].is_terminal)


class StepCodec:
    """Reads steps of one spec and writes their lines for one episode. `lines` is for one thread at a time."""

    def __init__(self, header: EpisodeHeader, types: "_Prepared", spec: EpisodeSpec) -> None:
        self._episode_id = header.episode_id
        self._role = header.control_role
        self._prepared = types
        self._record = _template(header, spec)
        self._metadata = self._record["step_metadata"]
        self._float_slots = []
        start = 0
        for leaf in types.floats:
            stop = start + leaf.size
            self._float_slots.append((*_holder(self._record, leaf.path), start, stop, leaf.feature.shape))
            start = stop
        self._other_slots = [(*_holder(self._record, leaf.path), leaf.to_value) for leaf in types.others]

    @staticmethod
    def of(header: EpisodeHeader, spec: EpisodeSpec) -> "StepCodec | None":
        """Return the codec of an episode, or None where its spec holds what the short way does not take."""
        prepared = _prepare(tuple(spec.observation.items()), tuple(spec.action.items()))
        return None if prepared is None else StepCodec(header, prepared, spec)

    def take(self, pieces: Sequence[Piece], kind: BodyKind) -> Taken | None:
        """Parse and check steps; None if any of them needs the general path."""
        prepared = self._prepared
        decode = prepared.msgpack.decode if kind == "msgpack" else prepared.json.decode
        try:
            steps = [decode(piece) for piece in pieces]
            packed = b"".join([part for step in steps for part in prepared.to_bytes(step)])
        except _GAVE_UP:
            return None
        return _taken(steps, packed)

    def take_arrays(self, step: StepIn) -> Taken | None:
        """Take a step that is made of the float32 arrays of its spec and the usual members; None for any other."""
        prepared = self._prepared
        if (
            prepared.others
            or step.step_metadata is not None
            or step.executed_action is not None
            or step.policy is not None
            or (step.timestamp_ns is not None and not _fits_int64(step.timestamp_ns))
        ):
            return None
        leaves: list[bytes] = []
        parts = {"observation": step.observation, "action": step.action}
        if not _gather(prepared.float_tree, parts, leaves):
            return None
        try:
            leaves.append(prepared.pack_reward(step.reward))
        except _GAVE_UP:
            return None
        return _taken([step], b"".join(leaves))

    def lines(self, taken: Taken, first_index: int) -> list[bytes] | None:
        """Return the log lines of steps `first_index` and following; None if they need the general path."""
        found = []
        last = len(taken) - 1
        for place, step in enumerate(taken.steps):
            index = first_index + place
            if (
                (step.step_index is not None and step.step_index != index)
                or step.control_role not in _ROLES
                or (step.is_terminal and place != last)
                or (step.episode_id is not None and step.episode_id != self._episode_id)
            ):
                return None
            line = self._line(step, taken.floats[place], index)
            if line is None:
                return None
            found.append(line)
        return found

    def _line(self, step: Any, floats: np.ndarray[Any, np.dtype[np.float32]], index: int) -> bytes | None:
        for holder, name, start, stop, shape in self._float_slots:
            if len(shape) == 1:
                holder[name] = floats[start:stop]
            else:
                holder[name] = floats[start:stop].reshape(shape) if shape else floats[start]
        try:
            for (holder, name, to_value), value in zip(
                self._other_slots, self._prepared.read_others(step), strict=True
            ):
                holder[name] = to_value(value)
        except _GAVE_UP:
            return None
        self._record["reward"] = floats[-1]
        self._record["is_terminal"] = step.is_terminal
        metadata = self._metadata
        metadata["timestamp_ns"] = time.time_ns() if step.timestamp_ns is None else step.timestamp_ns
        metadata["step_index"] = index
        metadata["control_role"] = step.control_role or self._role
        try:
            return encode_line(self._record)
        except InvalidError:
            return None


class _Prepared:
    """What depends on the spec alone, shared by all episodes that have it."""

    def __init__(self, types: StepTypes) -> None:
        self.floats = types.floats
        self.others = types.others
        self.json = msgspec.json.Decoder(types.json)
        self.msgpack = msgspec.msgpack.Decoder(types.msgpack)
        self.read_others = _getter([types.attributes[leaf.path] for leaf in types.others])
        self._read_floats = _getter([types.attributes[leaf.path] for leaf in types.floats])
        self._packers = [leaf.to_bytes for leaf in types.floats]
        self.pack_reward = struct.Struct("<f").pack
        self.float_tree = unflatten({"/".join(leaf.path): leaf.feature for leaf in types.floats})

    def to_bytes(self, step: Any) -> list[bytes]:
        """Return the float32 leaves of a step and its reward as bytes.

        Raises:
            ValueError, OverflowError, struct.error: a value does not fit its feature.
        """
        parts = [pack(value) for pack, value in zip(self._packers, self._read_floats(step), strict=True)]
        parts.append(self.pack_reward(step.reward))
        return parts


def _taken(steps: Sequence[Any], packed: bytes) -> Taken | None:
    """Return steps with their packed floats, unless one of these is not to be written as it stands."""
    if _ROUNDS_TWICE[0] in packed or _ROUNDS_TWICE[1] in packed:
        return None
    flat = np.frombuffer(packed, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if not flat.dot(flat) < _LARGEST_SQUARES:
            return None
    return Taken(steps, flat.reshape(len(steps), -1))


def _gather(tree: Mapping[str, Any], values: Any, found: list[bytes]) -> bool:
    """Append the bytes of each leaf in the order of `tree`; False where `values` are no float32 arrays like it."""
    if type(values) is not dict or len(values) != len(tree):
        return False
    for name, below in tree.items():
        value = values.get(name)
        if isinstance(below, Feature):
            if type(value) is not np.ndarray or value.dtype != _FLOAT32 or value.shape != below.shape:
                return False
            found.append(value.tobytes())
        elif not _gather(below, value, found):
            return False
    return True


def _fits_int64(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


@lru_cache(maxsize=64)
def _prepare(observation: tuple[tuple[str, Any], ...], action: tuple[tuple[str, Any], ...]) -> _Prepared | None:
    types = step_types(EpisodeSpec(dict(observation), dict(action)))
    return None if types is None else _Prepared(types)


def _getter(attributes: Sequence[str]) -> Getter:
    """Return what reads these attributes of an object into a row."""
    if not attributes:
        return lambda _: ()
    read = operator.attrgetter(*attributes)
    return read if len(attributes) > 1 else lambda step: (read(step),)


def _template(header: EpisodeHeader, spec: EpisodeSpec) -> dict[str, Any]:
    """Return the record of a step, made as every other one is, for its values to be put in."""

    def empty(features: Any) -> dict[str, Leaf]:
        return {
            path: "" if feature.dtype == "text" else np.zeros(feature.shape, feature.dtype)
            for path, feature in features.items()
        }

    return Step(
        step_index=0,
        observation=empty(spec.observation),
        action=empty(spec.action),
        reward=np.float32(0),
        is_terminal=False,
        timestamp_ns=0,
        control_role=header.control_role,
    ).record(header.episode_id)


def _holder(record: dict[str, Any], path: tuple[str, str]) -> tuple[dict[str, Any], str]:
    """Return the map of `record` that holds the leaf, and its name there."""
    part, names = path
    *folders, name = names.split("/")
    node = record[part]
    for folder in folders:
        node = node[folder]
    return node, name
