"""The steps of an episode packed into typed columns as they are read: no object a number stays in memory.

Two ways lead in. `add` takes a checked step. `take` takes whole log lines of the usual kind at once, at nearly the
speed of the JSON parser, and gives up on everything else (`False`, nothing taken): a damaged line, a wrong type,
name or shape, huge numbers, members that are rare. What it gives up on goes through the general reader and `add`,
which decide and word the error. What it takes they take too, with the same bits.
"""

import itertools
import struct
from collections.abc import Sequence
from math import prod
from typing import Any

import google_crc32c
import numpy as np
import orjson

from brain_service.episodes.episode import Column, Episode
from brain_service.episodes.log_format import MARK, TAIL_BYTES
from brain_service.episodes.rows import Row, RowLayout, at, encode_row
from brain_service.episodes.schema import Step
from brain_service.spec import EpisodeSpec, Feature, Leaf

__all__ = ["StepPacker"]

# A line without its newline: the bytes under the checksum, and where that begins.
_BODY = 1 - TAIL_BYTES
_CRC = _BODY + len(MARK)
_GAVE_UP = (KeyError, TypeError, ValueError, OverflowError, AttributeError, struct.error)


class _Buffer:
    """One feature over time, growing: `data` holds the values of its dtype, or `items` the texts or images."""

    def __init__(self, feature: Feature) -> None:
        self.feature = feature
        self.data = bytearray()
        self.items: list[Any] = []

    def add(self, value: Leaf | np.generic) -> None:
        if self.feature.is_numeric:
            self.data += np.asarray(value, self.feature.dtype).tobytes()
        else:
            self.items.append(value)

    def cut(self, steps: int) -> None:
        """Forget what follows the first `steps`."""
        del self.items[steps:]
        del self.data[steps * prod(self.feature.shape) * np.dtype(self.numpy_dtype).itemsize :]

    @property
    def numpy_dtype(self) -> str:
        return self.feature.dtype if self.feature.is_numeric else "uint8"

    def column(self, steps: int) -> Column:
        if not self.feature.is_numeric:
            return self.items
        return np.frombuffer(self.data, self.feature.dtype).reshape(steps, *self.feature.shape)


class StepPacker:
    """Collects the steps of one episode whose features are `spec`, in order; `len` counts them."""

    def __init__(self, spec: EpisodeSpec) -> None:
        self.spec = spec
        self._parts = {
            part: {path: _Buffer(feature) for path, feature in features.items()}
            for part, features in (("observation", spec.observation), ("action", spec.action))
        }
        self._executed: dict[str, _Buffer] | None = None
        self._reward = _Buffer(Feature("float32"))
        self._terminal = _Buffer(Feature("bool"))
        self._time_ns = _Buffer(Feature("int64"))
        self._roles: list[str] = []
        self._buffers = {
            f"{part}/{path}": own for part, found in self._parts.items() for path, own in found.items()
        }
        self._others = [
            (tuple(path.split("/")[:-1]), path.rpartition("/")[2], buffer)
            for path, buffer in self._buffers.items()
            if buffer.feature.dtype not in ("float32", "bool")
        ]
        # NumPy takes a boolean among integers for one: with as many literals as the spec has booleans, none is.
        self._literals = (
            1 + sum(prod(own.feature.shape) for own in self._buffers.values() if own.feature.dtype == "bool")
            if any(buffer.feature.is_numeric for _, _, buffer in self._others)
            else None
        )
        self._layout: RowLayout | None = None

    def __len__(self) -> int:
        return len(self._roles)

    def add(self, step: Step) -> None:
        """Append a step that was held against the spec."""
        if step.executed_action is not None and self._executed is None:
            self._executed = {path: _Buffer(feature) for path, feature in self.spec.action.items()}
            for path, buffer in self._parts["action"].items():
                self._executed[path].data[:] = buffer.data
                self._executed[path].items[:] = buffer.items
        for path, buffer in self._parts["observation"].items():
            buffer.add(step.observation[path])
        for path, buffer in self._parts["action"].items():
            buffer.add(step.action[path])
        if self._executed is not None:
            for path, buffer in self._executed.items():
                buffer.add((step.executed_action or step.action)[path])
        self._reward.add(step.reward)
        self._terminal.add(np.bool_(step.is_terminal))
        self._time_ns.add(np.int64(step.timestamp_ns))
        self._roles.append(step.control_role)

    def take(self, lines: Sequence[bytes]) -> bool:
        """Append the steps of log lines (without newlines), all or none; False where they need the general way."""
        if self._executed is not None or self.spec.image_paths:
            return False
        first = len(self)
        try:
            taken = self._take(lines)
        except _GAVE_UP:
            taken = False
        if not taken:
            self._cut(first)
        return taken

    def _take(self, lines: Sequence[bytes]) -> bool:
        read = [self._read(line, index) for index, line in enumerate(lines, len(self))]
        rows, terminal, times_ns, roles, others = zip(*read, strict=True)
        if (
            set(map(type, terminal)) != {bool}
            or set(map(type, times_ns)) != {int}
            or set(map(type, roles)) != {str}
        ):
            return False
        arrays = None if self._layout is None else self._layout.arrays(rows)
        if arrays is None:
            return False
        self._reward.data += arrays.pop("reward").tobytes()
        for path, array in arrays.items():
            self._buffers[path].data += array.tobytes()
        for (_, _, buffer), values in zip(self._others, zip(*others, strict=True), strict=True):
            _extend(buffer, values)
        self._terminal.data += bytes(terminal)
        self._time_ns.data += struct.pack(f"<{len(times_ns)}q", *times_ns)
        self._roles += roles
        return True

    def _read(self, line: bytes, index: int) -> tuple[bytes, Any, Any, Any, list[Any]]:
        """Check and parse a line: its numbers as a row, whether it ends, time, role, and the other features.

        Raises:
            _GAVE_UP: it is not of the usual kind.
        """
        body = line[:_BODY]
        if line[_BODY:_CRC] != MARK or line[-2:] != b'"}' or line[_CRC:-2] != b"%08x" % google_crc32c.value(body):
            raise ValueError
        if self._literals is not None and body.count(b"true") + body.count(b"false") != self._literals:
            raise ValueError
        record = orjson.loads(line)
        metadata = record["step_metadata"]
        if record["type"] != "step" or metadata["step_index"] != index or "executed_action" in record:
            raise ValueError
        others = [at(record, folders).pop(name) for folders, name, _ in self._others]
        row = record["observation"], record["action"], record["reward"]
        if self._layout is None:
            self._layout = self._layout_of(row)
        return encode_row(row), record["is_terminal"], metadata["timestamp_ns"], metadata["control_role"], others

    def _layout_of(self, row: Row) -> RowLayout:
        """Return the layout of this step, whose features are those of the spec.

        Raises:
            ValueError: they are not.
        """
        layout = RowLayout(row)
        expected = {path: self._buffers[path].feature.shape for path in self._buffers} | {"reward": ()}
        for folders, name, _ in self._others:
            del expected["/".join((*folders, name))]
        if layout.shapes != expected:
            raise ValueError
        return layout

    def _cut(self, steps: int) -> None:
        for buffer in itertools.chain(
            (self._reward, self._terminal, self._time_ns), *(part.values() for part in self._parts.values())
        ):
            buffer.cut(steps)
        del self._roles[steps:]

    def episode(
        self,
        episode_id: str,
        metadata: dict[str, Any],
        final_observation: dict[str, Leaf] | None,
        end: str | None,
    ) -> Episode:
        """Return what was collected (at least one step); nothing can be added afterwards."""
        steps = len(self)
        observation, action = (
            {path: buffer.column(steps) for path, buffer in part.items()} for part in self._parts.values()
        )
        executed = self._executed
        is_terminal = self._terminal.column(steps)
        assert isinstance(is_terminal, np.ndarray)  # a numeric feature
        if end == "terminated":
            is_terminal[-1] = True
        return Episode(
            episode_id=episode_id,
            metadata=metadata,
            spec=self.spec,
            observation=observation,
            action=action,
            reward=np.asarray(self._reward.column(steps)),
            is_terminal=is_terminal,
            timestamp_ns=np.asarray(self._time_ns.column(steps)),
            control_role=self._roles,
            executed_action=None
            if executed is None
            else {path: buffer.column(steps) for path, buffer in executed.items()},
            final_observation=final_observation,
            end=end,
        )


def _extend(buffer: _Buffer, values: Sequence[Any]) -> None:
    """Append the integers or texts of many steps to a feature.

    Raises:
        TypeError, ValueError: they are not all of its kind and shape.
    """
    feature = buffer.feature
    if feature.dtype == "text":
        if set(map(type, values)) != {str}:
            raise TypeError
        buffer.items += values
        return
    array = np.array(values)
    if array.dtype.kind != "i" or array.shape != (len(values), *feature.shape):
        raise ValueError
    if feature.dtype == "uint8" and not (array.min() >= 0 and array.max() <= 255):
        raise ValueError
    buffer.data += array.astype(feature.dtype).tobytes()
