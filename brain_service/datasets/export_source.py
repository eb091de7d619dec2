"""What every export format is given: episodes of a dataset with their metadata, ready to write."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int64

from brain_service.datasets.columns import Columns
from brain_service.datasets.dataset import Dataset
from brain_service.datasets.manifest import EpisodeEntry

__all__ = ["ExportEpisode", "ExportNotes", "ExportRequest", "Progress", "Transitions"]

Progress = Callable[[int, int], None]
"""Called with the episodes done and their total."""

# The same share as makes /health warn of a robot that does not keep the trained control period.
_JITTER = 0.2


@dataclass(frozen=True)
class ExportEpisode:
    """One episode: `columns` as `Dataset.read` gives them, `metadata` as the dataset stores it."""

    split: str
    entry: EpisodeEntry
    columns: Columns
    metadata: dict[str, Any]

    def transitions(self) -> "Transitions":
        """Return the captured steps: a final observation of the `rlds` profile has no action and goes.

        What it said of the episode's end stays.
        """
        # Roles count captured steps, `length` the stored ones.
        captured = min(self.entry.length, sum(self.entry.roles.values()))
        columns = {name: column[:captured] for name, column in self.columns.items()}
        return Transitions(columns, bool(np.any(self.columns["is_terminal"])))


@dataclass(frozen=True)
class ExportRequest:
    """What to export. `fps` None: from the control period. `images`: whether formats with a choice take them."""

    dataset: Dataset
    splits: tuple[str, ...]
    fps: int | None
    robot_type: str | None
    images: bool
    progress: Progress

    def episodes(self) -> Iterator[ExportEpisode]:
        """Yield the episodes in order, one in memory at a time.

        Raises:
            NotFoundError: there is no such split.
            CorruptDataError: a record fails its checksum.
        """
        total = sum(len(self.dataset.entries(split)) for split in self.splits)
        done = 0
        for split in self.splits:
            for index, entry in enumerate(self.dataset.entries(split)):
                self.progress(done, total)
                columns = self.dataset.read(split, index)
                yield ExportEpisode(split, entry, columns, self.dataset.metadata(split, index))
                done += 1
        self.progress(total, total)


@dataclass(frozen=True)
class Transitions:
    """The steps of an episode that have an action, and whether its last one terminated it."""

    columns: Columns
    terminated: bool

    def __len__(self) -> int:
        return len(self.columns["control_role"])


@dataclass
class ExportNotes:
    """What a format says of its work: counts, features left out with the reason, warnings."""

    episodes: int = 0
    steps: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def check_pace(self, episode_id: str, times_ns: Int64[np.ndarray, " T"], period_s: float) -> None:
        """Warn where more than a twentieth of an episode's intervals are over 20 % off the period in seconds."""
        if len(times_ns) < 2 or period_s <= 0:
            return
        intervals_s = np.diff(times_ns) / 1e9
        off = float((np.abs(intervals_s - period_s) > _JITTER * period_s).mean())
        if off > 0.05:
            self.warnings.append(
                f"episode {episode_id}: {off:.0%} of its intervals are over {_JITTER:.0%} off {period_s:.4g} s; "
                "timestamp_ns keeps the true times"
            )
