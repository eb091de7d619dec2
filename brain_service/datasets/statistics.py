"""Mean, spread, range and quantiles of every numeric feature over the training split, in one streaming pass."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from jaxtyping import Float32, Shaped

from brain_service.datasets.columns import Columns, Profile, action_name, valid_transitions
from brain_service.datasets.moments import FeatureStatistics, Moments
from brain_service.errors import CorruptDataError
from brain_service.spec import EpisodeSpec, FeatureSpec
from brain_service.structs import prepared

__all__ = [
    "STATISTICS_FILE",
    "FeatureStatistics",
    "SamplePlace",
    "Statistics",
    "StatisticsBuilder",
    "StatisticsPart",
    "numeric_paths",
    "parse_statistics",
    "read_statistics",
    "sample_stride",
    "write_statistics",
]

STATISTICS_FILE = "statistics.json"
# Of a larger dataset between half of them and all are kept: p01 is then the quantile 0.01 +- 0.0006 (one sigma).
SAMPLE_STEPS = 65_536
OCTO_FILE = "dataset_statistics.json"

_STEPS_AT_ONCE = 512
Name = Literal["mean", "std", "min", "max", "p01", "p99", "q01", "q99"]


@prepared
class Statistics(msgspec.Struct, frozen=True):
    """Figures of a dataset's training split, by feature path; text and images have none."""

    observation: dict[str, FeatureStatistics]
    action: dict[str, FeatureStatistics]
    reward: FeatureStatistics
    num_transitions: int
    num_trajectories: int

    def vector(self, part: Literal["observation", "action"], name: Name) -> Float32[np.ndarray, " D"]:
        """Return one figure as a vector in the order of `spec.to_vector`, shape `[vector_size]`."""
        features = self.observation if part == "observation" else self.action
        parts = [np.asarray(getattr(features[path], name), np.float32) for path in sorted(features)]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def to_octo(self) -> dict[str, Any]:
        """Return the document that Octo and OpenVLA read: flat `action` and `proprio` vectors."""
        names: tuple[Name, ...] = ("mean", "std", "min", "max", "p01", "p99", "q01", "q99")
        return {
            "action": {name: self.vector("action", name).tolist() for name in names},
            "proprio": {name: self.vector("observation", name).tolist() for name in names},
            "num_transitions": self.num_transitions,
            "num_trajectories": self.num_trajectories,
        }


def sample_stride(lengths: Iterable[int], sample_steps: int = SAMPLE_STEPS) -> int:
    """Return which step in how many a builder keeps for quantiles, once it took episodes of these lengths."""
    stride, kept, pending = 1, 0, 0
    for length in [*lengths, None]:
        pending += length or 0
        if not pending or (length is not None and pending < _STEPS_AT_ONCE):
            continue
        while kept - (-pending // stride) > sample_steps:
            stride, kept = stride * 2, -(-kept // 2)
        kept += -(-pending // stride)
        pending = 0
    return stride


@dataclass(frozen=True)
class SamplePlace:
    """Where a part stands in the whole: `stride` of the whole's sample, its steps and transitions before."""

    stride: int
    steps: int
    transitions: int


@dataclass(frozen=True)
class StatisticsPart:
    """What a builder knows of its episodes, to be joined with what others know of theirs."""

    moments: dict[str, Moments]
    intervals_ns: list[int]
    transitions: int
    trajectories: int

    @staticmethod
    def joined(parts: Iterable["StatisticsPart"]) -> "StatisticsPart":
        """Return the whole of parts that are given in its order; there must be at least one."""
        first, *others = parts
        # Of their own: joining must not change what was given.
        moments = {key: replace(value, sample=[*value.sample]) for key, value in first.moments.items()}
        intervals, transitions, trajectories = [*first.intervals_ns], first.transitions, first.trajectories
        for part in others:
            for key, value in part.moments.items():
                moments[key].join(value)
            intervals += part.intervals_ns
            transitions += part.transitions
            trajectories += part.trajectories
        return StatisticsPart(moments, intervals, transitions, trajectories)

    @property
    def control_period_s(self) -> float:
        """Median time between steps in seconds; 0 where no episode has two steps."""
        return float(np.median(self.intervals_ns)) / 1e9 if self.intervals_ns else 0.0

    def statistics(self) -> Statistics:
        """Return the figures."""
        figures = {key: moments.result() for key, moments in self.moments.items()}
        return Statistics(
            observation=_part(figures, "observation/"),
            action=_part(figures, "action/"),
            reward=figures["reward"],
            num_transitions=self.transitions,
            num_trajectories=self.trajectories,
        )


class StatisticsBuilder:
    """Takes the training episodes one by one; moments are exact, quantiles come from every n-th step.

    At most about `sample_steps` steps are kept for quantiles: n doubles whenever they would be more. Equal
    episodes in equal order give equal figures, to the bit.
    Actions and rewards that the profile calls invalid are left out.

    With `place` the episodes are a part of more, and the sample is what the whole's builder keeps of them.
    """

    def __init__(
        self,
        spec: EpisodeSpec,
        profile: Profile,
        sample_steps: int = SAMPLE_STEPS,
        place: SamplePlace | None = None,
    ) -> None:
        self._profile = profile
        self._sample_steps = sample_steps
        self._place = place
        self._stride = 1 if place is None else place.stride
        self._kept = 0
        self._steps = 0
        self._episodes = 0
        self._intervals_ns: list[int] = []
        self._names = {
            **{f"observation/{path}": f"observation/{path}" for path in numeric_paths(spec.observation)},
            **{f"action/{path}": action_name(spec, path) for path in numeric_paths(spec.action)},
            "reward": "reward",
        }
        self._moments: dict[str, Moments] = {}
        self._pending: list[Columns] = []
        self._pending_steps = 0

    def add(self, columns: Columns) -> None:
        """Take one episode's columns; they are not to be written to afterwards."""
        times = _array(columns, "timestamp_ns")
        if len(times) > 1:
            self._intervals_ns.append(int(np.median(np.diff(times))))
        self._episodes += 1
        self._pending.append(columns)
        self._pending_steps += len(times)
        if self._pending_steps >= _STEPS_AT_ONCE:
            self._take_pending()

    def _take_pending(self) -> None:
        """Merge the episodes that wait: many short ones together, since each merge has its price."""
        pending, self._pending, self._pending_steps = self._pending, [], 0
        if not pending:
            return
        valid = valid_transitions(_joined(pending, "is_last"), self._profile)
        all_valid = bool(valid.all())
        # Before, not after: of a long episode the sample would be a second copy.
        while self._place is None and self._kept - (-len(valid) // self._stride) > self._sample_steps:
            self._thin()
        for key, name in self._names.items():
            column = _joined(pending, name)
            rows = column.reshape(len(column), -1)
            rows = rows if key.startswith("observation/") or all_valid else rows[valid]
            if key not in self._moments:
                self._moments[key] = Moments.empty(rows.shape[1], self._before(key))
            self._moments[key].add(rows, self._stride)
        self._steps += int(valid.sum())
        self._kept += -(-len(valid) // self._stride)

    def _before(self, key: str) -> int:
        if self._place is None:
            return 0
        return self._place.steps if key.startswith("observation/") else self._place.transitions

    def _thin(self) -> None:
        self._stride *= 2
        for moments in self._moments.values():
            moments.thin()
        self._kept = -(-self._kept // 2)

    @property
    def kept_steps(self) -> int:
        """Count of steps whose values are held for quantiles, rounded up at each thinning."""
        return self._kept

    @property
    def control_period_s(self) -> float:
        """Median time between steps in seconds; 0 where no episode has two steps."""
        return self.part().control_period_s

    def part(self) -> StatisticsPart:
        """Return what is known of all episodes taken so far."""
        self._take_pending()
        return StatisticsPart(self._moments, self._intervals_ns, self._steps, self._episodes)

    def result(self) -> Statistics:
        """Return the figures of all episodes taken so far; there must be at least one."""
        return self.part().statistics()


def _array(columns: Columns, name: str) -> Shaped[np.ndarray, "_ ..."]:
    column = columns[name]
    assert isinstance(column, np.ndarray)  # by its feature: text has no statistics
    return column


def _joined(episodes: Sequence[Columns], name: str) -> Shaped[np.ndarray, "_ ..."]:
    arrays = [_array(columns, name) for columns in episodes]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def numeric_paths(spec: FeatureSpec) -> list[str]:
    """Return the features of a part that have figures."""
    return [path for path, feature in spec.items() if feature.is_numeric]


def _part(figures: dict[str, FeatureStatistics], prefix: str) -> dict[str, FeatureStatistics]:
    return {key.removeprefix(prefix): value for key, value in figures.items() if key.startswith(prefix)}


def write_statistics(folder: Path, statistics: Statistics) -> None:
    """Write `statistics.json` and the flat `dataset_statistics.json` into a folder not published yet."""
    for file, document in ((STATISTICS_FILE, statistics), (OCTO_FILE, statistics.to_octo())):
        (folder / file).write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1))


def read_statistics(folder: Path) -> Statistics:
    """Read a dataset's `statistics.json`.

    Raises:
        CorruptDataError: the file is missing or not what was written.
    """
    path = folder / STATISTICS_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptDataError(f"{path}: {error}; convert the episodes again to rebuild it") from error
    return parse_statistics(data, str(path))


def parse_statistics(data: bytes, place: str) -> Statistics:
    """Parse the bytes of a `statistics.json`; `place` stands for the file in errors.

    Raises:
        CorruptDataError: they are not what was written.
    """
    try:
        return msgspec.json.decode(data, type=Statistics)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if "got `null`" in str(error):  # JSON has no NaN: this is what it is written as
            raise CorruptDataError(
                f"{place}: {error}: NaN or an infinity in the episodes; `brain datasets report` finds it, delete "
                "that episode and convert again"
            ) from error
        raise CorruptDataError(f"{place}: {error}; convert the episodes again to rebuild it") from error
