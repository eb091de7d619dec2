"""LeRobot v3.0 datasets as episodes: what their parquet files hold. Videos are not decoded.

One frame becomes one step. A dataset that tells no true times gets those of its frames.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from brain_service.datasets.feature_map import ChosenFeatures
from brain_service.datasets.import_source import (
    ImportNotes,
    ImportOptions,
    Rejected,
    check_rate,
    episode_name,
    header_metadata,
    paced_times,
    read_roles,
)
from brain_service.datasets.lerobot_files import (
    LeRobotInfo,
    known_features,
    read_column,
    read_episode_rows,
    read_info,
    read_parquet,
    read_tasks,
    sized_feature,
)
from brain_service.datasets.lerobot_layout import ACTION, INFO_PATH, TASKS_PATH
from brain_service.episodes.episode import Column, Episode
from brain_service.errors import BrainError, CorruptDataError
from brain_service.spec import Feature

__all__ = ["LeRobotImport"]

_USED = frozenset(
    (
        "timestamp",
        "frame_index",
        "episode_index",
        "index",
        "task_index",
        "next.reward",
        "next.done",
        "next.truncated",
        "timestamp_ns",
        "control_role",
    )
)
# LeRobot's own tolerance of a frame's time is 1e-4 s; float32 seconds of long episodes need a little more.
_GRID_TOLERANCE_S = 1e-3


def _is_joined(known: Mapping[str, Feature]) -> bool:
    """Tell whether `action` only repeats several actions, as our export joins them: these then come in."""
    parts = [prod(feature.shape) for name, feature in known.items() if name.startswith(f"{ACTION}.")]
    whole = known.get(ACTION)
    return whole is not None and len(parts) > 1 and sum(parts) == prod(whole.shape)


@dataclass(frozen=True)
class LeRobotImport:
    """Opens a LeRobot v3.0 folder with pyarrow."""

    def open(self, path: Path, options: ImportOptions) -> "_LeRobotSource":
        """Read the description of a dataset.

        Raises:
            NotFoundError: there is no LeRobot dataset.
            InvalidError: pyarrow is not installed, another version, an impossible rate, or features that cannot be
                taken.
            CorruptDataError: its description is damaged.
        """
        info = read_info(path)
        check_rate(info.fps, f"{path / INFO_PATH}: fps")
        known, unreadable = known_features(info)
        used = frozenset(name for name in _USED if name in known)
        if options.action is None and _is_joined(known):
            used |= {ACTION}
        chosen = options.feature_map(".").choose(known, unreadable, used)
        return _LeRobotSource(
            folder=path,
            name=path.resolve().name,
            info=info,
            known=known,
            chosen=chosen,
            fps=options.fps or info.fps,
            rows=read_episode_rows(path, info),
            tasks=read_tasks(path / TASKS_PATH),
            notes=ImportNotes(left_out=chosen.left_out, facts={"codebase_version": info.codebase_version}),
        )


@dataclass
class _LeRobotSource:
    folder: Path
    name: str
    info: LeRobotInfo
    known: dict[str, Feature]
    chosen: ChosenFeatures
    fps: float
    rows: list[dict[str, Any]]
    tasks: dict[int, str]
    notes: ImportNotes
    taken: set[str] = field(default_factory=set)

    @property
    def total(self) -> int:
        """Episodes in all."""
        return len(self.rows)

    def episodes(self) -> Iterator[Episode | Rejected]:
        """Yield the episodes; one parquet file is in memory at a time."""
        opened: tuple[Path, Any] | None = None
        for row in self.rows:
            place = f"episode {row['episode_index']}"
            try:
                path = self._file_of(row)
                if opened is None or opened[0] != path:
                    opened = (path, self._read_frames(path))
                yield self._episode(row, opened[1], place)
            except BrainError as error:
                yield Rejected(place, error.detail)

    def _file_of(self, row: Mapping[str, Any]) -> Path:
        indices = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        try:
            return self.folder / self.info.data_path.format(**indices)
        except (LookupError, ValueError, TypeError) as error:
            raise CorruptDataError(
                f"{INFO_PATH}: data_path {self.info.data_path!r} does not lead from {indices} to a file"
            ) from error

    def _read_frames(self, path: Path) -> Any:
        names = self.chosen.names() | (_USED & self.known.keys())
        return read_parquet(path, sorted(names))

    def _episode(self, row: Mapping[str, Any], table: Any, place: str) -> Episode:
        mine = np.flatnonzero(np.asarray(table.column("episode_index")) == row["episode_index"])
        steps = int(row["length"])
        if len(mine) != steps or steps == 0 or mine[-1] - mine[0] != steps - 1:
            raise CorruptDataError(
                f"{place}: the index says {steps} frames, its file holds {len(mine)}; fetch the dataset again"
            )
        frames = table.slice(int(mine[0]), steps)
        names = self.chosen.names()
        columns = {name: read_column(frames, name, self.known[name], steps) for name in names}
        told = {name: read_column(frames, name, self.known[name], steps) for name in _USED & self.known.keys()}
        features = {name: sized_feature(self.known[name], columns[name], name) for name in names}
        episode_id = episode_name(row.get("episode_id"), self.name, "episode", row["episode_index"], self.taken)
        self.taken.add(episode_id)
        return Episode(
            episode_id=episode_id,
            metadata=self._metadata(row, told.get("task_index"), episode_id),
            spec=self.chosen.spec(features),
            observation={path: columns[name] for path, name in self.chosen.observation.items()},
            action={path: columns[name] for path, name in self.chosen.action.items()},
            reward=self._reward(told.get("next.reward"), steps),
            is_terminal=_terminal(told, steps),
            timestamp_ns=self._times(told, steps),
            control_role=read_roles(told.get("control_role"), steps),
            executed_action=None,
            final_observation=None,
            end=None,
        )

    def _metadata(self, row: Mapping[str, Any], task_index: Column | None, episode_id: str) -> dict[str, Any]:
        told: dict[str, Any] = {"robot_id": self.info.robot_type}
        try:
            document = orjson.loads(row.get("metadata_json") or b"{}")
            told |= document if isinstance(document, dict) else {}
        except orjson.JSONDecodeError:
            self.notes.warn(f"episode {episode_id}: its metadata_json is no JSON and is left out")
        if isinstance(task_index, np.ndarray) and self.tasks:
            found = list(dict.fromkeys(task_index.reshape(-1).tolist()))
            if len(found) > 1:
                self.notes.warn(f"episode {episode_id}: its task changes on the way; the first one is kept")
            told["language_instruction"] = self.tasks.get(found[0], "")
        return header_metadata(told)

    def _reward(self, column: Column | None, steps: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        if not isinstance(column, np.ndarray):
            self.notes.warn("there is no next.reward; the reward is 0 throughout")
            return np.zeros(steps, np.float32)
        return column.reshape(steps, -1)[:, 0].astype(np.float32)

    def _times(self, told: Mapping[str, Column], steps: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        exact = told.get("timestamp_ns")
        if isinstance(exact, np.ndarray) and exact.dtype == np.int64:
            return exact.reshape(steps)
        paced = paced_times(steps, self.fps)
        stamps = told.get("timestamp")
        if not isinstance(stamps, np.ndarray):
            return paced
        seconds = stamps.reshape(steps).astype(np.float64)
        on_grid = np.abs(seconds - seconds[0] - paced / 1e9).max() < _GRID_TOLERANCE_S
        return paced if on_grid else np.rint(seconds * 1e9).astype(np.int64)


def _terminal(told: Mapping[str, Column], steps: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which steps ended the episode: those that are done and were not cut off."""
    done = np.asarray(told.get("next.done", np.zeros(steps, np.bool_))).reshape(steps)
    cut = np.asarray(told.get("next.truncated", np.zeros(steps, np.bool_))).reshape(steps)
    return done.astype(np.bool_) & ~cut.astype(np.bool_)
