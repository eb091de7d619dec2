"""The steps of an episode packed into typed columns as they are read: no object a number stays in memory.

Two ways lead in. `add` takes a checked step. `take` takes whole log lines of the usual kind at once, faster than
a JSON parser makes Python objects of them, and gives up on everything else (`False`, nothing taken): a damaged
line, a wrong type, name or shape, huge numbers, members that are rare. What it gives up on goes through the
general reader and `add`, which decide and word the error. What it takes they take too, with the same bits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from brain_service.episodes.episode import Column, Episode
from brain_service.episodes.schema import Step
from brain_service.episodes.step_parser import GAVE_UP, StepParser
from brain_service.spec import EpisodeSpec, Feature, Leaf

__all__ = ["StepPacker"]


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

    def extend(self, column: Column) -> None:
        """Append values of many steps; arrays are of its dtype."""
        if isinstance(column, list):
            self.items += column
        else:
            self.data += column.data.cast("B")

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
        self._parser: StepParser | None = None

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
        try:
            parser = self._parser or StepParser(self.spec, lines[0])
            parsed = parser.parse(lines, len(self))
        except GAVE_UP:
            return False
        self._parser = parser
        for name, column in parsed.columns.items():
            self._buffers[name].extend(column)
        self._reward.extend(parsed.reward)
        self._terminal.extend(parsed.is_terminal)
        self._time_ns.extend(parsed.timestamp_ns)
        self._roles += parsed.control_roles
        return True

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
