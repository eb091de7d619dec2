"""Mean, spread, range and quantiles of every numeric feature over the training split, in one streaming pass."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from jaxtyping import Float32, Float64, Shaped

from brain_service.datasets.columns import Columns, Profile, action_name, valid_transitions
from brain_service.errors import CorruptDataError
from brain_service.spec import EpisodeSpec, FeatureSpec
from brain_service.structs import prepared

__all__ = [
    "STATISTICS_FILE",
    "FeatureStatistics",
    "Statistics",
    "StatisticsBuilder",
    "parse_statistics",
    "read_statistics",
    "write_statistics",
]

STATISTICS_FILE = "statistics.json"
# Of a larger dataset between half of them and all are kept: p01 is then the quantile 0.01 +- 0.0006 (one sigma).
SAMPLE_STEPS = 65_536
OCTO_FILE = "dataset_statistics.json"

_BLOCK_NUMBERS = 1 << 15
_STEPS_AT_ONCE = 512
# Of float32 samples at a time, to be sorted for quantiles.
_COLUMNS = 16
Name = Literal["mean", "std", "min", "max", "p01", "p99", "q01", "q99"]


class FeatureStatistics(msgspec.Struct, frozen=True):
    """Figures of one feature, each a flat list over its elements; `std` is the population's.

    `p01`/`p99` and `q01`/`q99` are the same quantiles under the names that Octo and OpenVLA look for.
    """

    mean: list[float]
    std: list[float]
    min: list[float]
    max: list[float]
    p01: list[float]
    p99: list[float]
    q01: list[float]
    q99: list[float]


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


@dataclass
class _Moments:
    """Exact running moments of rows `[T, n]`, and every `stride`-th of them for quantiles."""

    count: int
    mean: Float64[np.ndarray, " n"]
    squares: Float64[np.ndarray, " n"]
    low: Float64[np.ndarray, " n"]
    high: Float64[np.ndarray, " n"]
    sample: list[Float32[np.ndarray, "t n"]] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)
    """For each part of the sample the number of rows that were sampled before it."""

    @staticmethod
    def empty(size: int) -> "_Moments":
        """Return the moments of no rows of `size` numbers."""
        return _Moments(0, np.zeros(size), np.zeros(size), np.full(size, np.inf), np.full(size, -np.inf))

    def add(self, rows: Shaped[np.ndarray, "T n"], stride: int) -> None:
        """Merge rows into the moments (Chan, Golub, LeVeque 1979: no cancellation for large offsets)."""
        if not len(rows):
            return
        first = -self.count % stride
        self.sample.append(rows[first::stride].astype(np.float32))
        self.sampled.append(-(-self.count // stride))
        # A block at a time stays in the processor's cache, and a long episode takes no more memory than a short.
        block = max(1, _BLOCK_NUMBERS // rows.shape[1]) if rows.shape[1] else len(rows)
        for start in range(0, len(rows), block):
            self._merge(rows[start : start + block])

    def _merge(self, rows: Shaped[np.ndarray, "T n"]) -> None:
        added, mean = len(rows), rows.mean(axis=0, dtype=np.float64)
        total = self.count + added
        off = rows - mean
        delta = mean - self.mean
        self.squares += np.einsum("tn,tn->n", off, off) + delta**2 * (self.count * added / total)
        self.mean += delta * (added / total)
        self.low = np.minimum(self.low, rows.min(axis=0))
        self.high = np.maximum(self.high, rows.max(axis=0))
        self.count = total

    def thin(self) -> None:
        """Keep every second row of the sample, as if the stride had always been twice what it was."""
        self.sample = [
            part[before % 2 :: 2].copy() for part, before in zip(self.sample, self.sampled, strict=True)
        ]
        self.sampled = [-(-before // 2) for before in self.sampled]

    def result(self) -> FeatureStatistics:
        """Return the figures; zeros where there was no row."""
        if self.count == 0:
            zeros = [0.0] * len(self.mean)
            return FeatureStatistics(*[zeros] * 8)
        # A few columns at a time: all at once would take the memory of the sample twice again.
        quantiles = [
            _quantiles(np.concatenate([part[:, n : n + _COLUMNS] for part in self.sample]))
            for n in range(0, len(self.mean), _COLUMNS)
        ]
        q01, q99 = np.concatenate(quantiles, axis=1).tolist()
        std = np.sqrt(self.squares / self.count).tolist()
        return FeatureStatistics(
            self.mean.tolist(), std, self.low.tolist(), self.high.tolist(), q01, q99, q01, q99
        )


def _quantiles(rows: Float32[np.ndarray, "t n"]) -> Float64[np.ndarray, "2 n"]:
    """Return the 1st and 99th percentile of each column, interpolated linearly as NumPy has it."""
    # Sorted whole, with vector instructions: a selection of four ranks takes several times as long.
    columns = np.sort(np.ascontiguousarray(rows.T), axis=1)
    ranks = np.array([0.01, 0.99]) * (len(rows) - 1)
    low = np.floor(ranks).astype(np.int64)
    high = np.minimum(low + 1, len(rows) - 1)
    below, above = columns[:, low].astype(np.float64), columns[:, high].astype(np.float64)
    found: Float64[np.ndarray, "2 n"] = (below + (above - below) * (ranks - low)).T
    return found


class StatisticsBuilder:
    """Takes the training episodes one by one; moments are exact, quantiles come from every n-th step.

    At most about `sample_steps` steps are kept for quantiles: n doubles whenever they would be more. Equal
    episodes in equal order give equal figures, to the bit.
    Actions and rewards that the profile calls invalid are left out.
    """

    def __init__(self, spec: EpisodeSpec, profile: Profile, sample_steps: int = SAMPLE_STEPS) -> None:
        self._profile = profile
        self._sample_steps = sample_steps
        self._stride = 1
        self._kept = 0
        self._steps = 0
        self._episodes = 0
        self._intervals_ns: list[int] = []
        self._names = {
            **{f"observation/{path}": f"observation/{path}" for path in _numeric(spec.observation)},
            **{f"action/{path}": action_name(spec, path) for path in _numeric(spec.action)},
            "reward": "reward",
        }
        self._moments: dict[str, _Moments] = {}
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
        while self._kept - (-len(valid) // self._stride) > self._sample_steps:
            self._thin()
        for key, name in self._names.items():
            column = _joined(pending, name)
            rows = column.reshape(len(column), -1)
            rows = rows if key.startswith("observation/") or all_valid else rows[valid]
            if key not in self._moments:
                self._moments[key] = _Moments.empty(rows.shape[1])
            self._moments[key].add(rows, self._stride)
        self._steps += int(valid.sum())
        self._kept += -(-len(valid) // self._stride)

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
        return float(np.median(self._intervals_ns)) / 1e9 if self._intervals_ns else 0.0

    def result(self) -> Statistics:
        """Return the figures of all episodes taken so far; there must be at least one."""
        self._take_pending()
        figures = {key: moments.result() for key, moments in self._moments.items()}
        return Statistics(
            observation=_part(figures, "observation/"),
            action=_part(figures, "action/"),
            reward=figures["reward"],
            num_transitions=self._steps,
            num_trajectories=self._episodes,
        )


def _array(columns: Columns, name: str) -> Shaped[np.ndarray, "_ ..."]:
    column = columns[name]
    assert isinstance(column, np.ndarray)  # by its feature: text has no statistics
    return column


def _joined(episodes: Sequence[Columns], name: str) -> Shaped[np.ndarray, "_ ..."]:
    arrays = [_array(columns, name) for columns in episodes]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _numeric(spec: FeatureSpec) -> list[str]:
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
