"""LeRobot v3.0 datasets as episodes: what their parquet files hold. Videos are not decoded.

One frame becomes one step. A dataset that tells no true times gets those of its frames.
"""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson

from brain_service.datasets.feature_map import ChosenFeatures
from brain_service.datasets.import_source import (
    ImportNotes,
    ImportOptions,
    Rejected,
    episode_name,
    header_metadata,
    paced_times,
    read_roles,
)
from brain_service.datasets.lerobot_layout import CODEBASE_VERSION, INFO_PATH, TASKS_PATH
from brain_service.episodes.episode import Column, Episode
from brain_service.errors import BrainError, CorruptDataError, InvalidError, NotFoundError
from brain_service.image_header import read_image_header
from brain_service.spec import Dtype, Feature

__all__ = ["LeRobotImport"]

_CONVERTER = "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30"
_DTYPES: dict[str, Dtype] = {
    "bool": "bool",
    "uint8": "uint8",
    "string": "text",
    "image": "image",
    **dict.fromkeys(("int8", "int16", "int32", "int64", "uint16", "uint32"), "int64"),
    **dict.fromkeys(("float16", "float32", "float64"), "float32"),
}
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


class _Info(msgspec.Struct, kw_only=True):
    codebase_version: str
    fps: float
    features: dict[str, dict[str, Any]]
    total_episodes: int
    data_path: str
    robot_type: str | None = None


@dataclass(frozen=True)
class LeRobotImport:
    """Opens a LeRobot v3.0 folder with pyarrow."""

    def open(self, path: Path, options: ImportOptions) -> "_LeRobotSource":
        """Read the description of a dataset.

        Raises:
            NotFoundError: there is no LeRobot dataset.
            InvalidError: pyarrow is not installed, another version, or features that cannot be taken.
            CorruptDataError: its description is damaged.
        """
        info = _read_info(path)
        known, unreadable = _known_features(info)
        used = frozenset(name for name in _USED if name in known)
        chosen = options.feature_map(".").choose(known, unreadable, used)
        return _LeRobotSource(
            folder=path,
            name=path.resolve().name,
            info=info,
            known=known,
            chosen=chosen,
            fps=options.fps or info.fps,
            rows=_read_rows(path, info),
            tasks=_read_tasks(path / TASKS_PATH),
            notes=ImportNotes(left_out=chosen.left_out, facts={"codebase_version": info.codebase_version}),
        )


@dataclass
class _LeRobotSource:
    folder: Path
    name: str
    info: _Info
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
                path = self.folder / self.info.data_path.format(
                    chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
                )
                if opened is None or opened[0] != path:
                    opened = (path, self._read_frames(path))
                yield self._episode(row, opened[1], place)
            except BrainError as error:
                yield Rejected(place, error.detail)

    def _read_frames(self, path: Path) -> Any:
        names = {*self.chosen.observation.values(), *self.chosen.action.values(), *(_USED & self.known.keys())}
        return _read_parquet(path, sorted(names))

    def _episode(self, row: Mapping[str, Any], table: Any, place: str) -> Episode:
        mine = np.flatnonzero(np.asarray(table.column("episode_index")) == row["episode_index"])
        steps = int(row["length"])
        if len(mine) != steps or steps == 0 or mine[-1] - mine[0] != steps - 1:
            raise CorruptDataError(
                f"{place}: the index says {steps} frames, its file holds {len(mine)}; fetch the dataset again"
            )
        frames = table.slice(int(mine[0]), steps)
        names = {**self.chosen.observation, **self.chosen.action}.values()
        columns = {name: _column(frames, name, self.known[name], steps) for name in names}
        told = {name: _column(frames, name, self.known[name], steps) for name in _USED & self.known.keys()}
        features = {name: _sized(self.known[name], columns[name], name) for name in names}
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


def _read_info(folder: Path) -> _Info:
    path = folder / INFO_PATH
    try:
        document = msgspec.json.decode(path.read_bytes())
        version = document.get("codebase_version") if isinstance(document, dict) else None
        if isinstance(version, str) and version != CODEBASE_VERSION:
            raise InvalidError(
                f"{path}: codebase version {version} is not {CODEBASE_VERSION}; convert the dataset first, with "
                f"'{_CONVERTER} --repo-id ... --root {folder}' of lerobot",
                field="codebase_version",
            )
        return msgspec.convert(document, _Info)
    except FileNotFoundError as error:
        raise NotFoundError(f"no LeRobot dataset at {folder}: {INFO_PATH} is missing") from error
    except msgspec.MsgspecError as error:
        raise CorruptDataError(f"{path}: {error}; fetch the dataset again") from error


def _known_features(info: _Info) -> tuple[dict[str, Feature], dict[str, str]]:
    """Return the features that can be read, and why others cannot."""
    known: dict[str, Feature] = {}
    unreadable: dict[str, str] = {}
    for name, described in info.features.items():
        dtype, shape = described.get("dtype"), described.get("shape") or []
        if dtype == "video":
            unreadable[name] = "videos are not decoded; convert them to images, or use the vectors alone"
        elif dtype not in _DTYPES:
            unreadable[name] = f"its dtype {dtype} is none of {', '.join(_DTYPES)}"
        elif not all(type(n) is int and n > 0 for n in shape):
            unreadable[name] = f"its shape {shape} is not a list of positive integers"
        else:
            known[name] = Feature(_DTYPES[dtype], () if dtype == "string" else tuple(shape))
    missing = sorted({"episode_index", "frame_index"} - known.keys())
    if missing:
        raise CorruptDataError(f"{INFO_PATH}: features lacks {', '.join(missing)}; fetch the dataset again")
    return known, unreadable


def _read_rows(folder: Path, info: _Info) -> list[dict[str, Any]]:
    """Return the rows of the episode index without their statistics, in order."""
    needed = ("episode_index", "length", "data/chunk_index", "data/file_index")
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "meta" / "episodes").glob("*/*.parquet")):
        table = _read_parquet(path, None)
        missing = [name for name in needed if name not in table.column_names]
        if missing:
            raise CorruptDataError(f"{path}: lacks {', '.join(missing)}; fetch the dataset again")
        rows += table.select([n for n in table.column_names if not n.startswith("stats/")]).to_pylist()
    if len(rows) != info.total_episodes:
        raise CorruptDataError(
            f"{folder / 'meta' / 'episodes'} lists {len(rows)} episodes, {INFO_PATH} says {info.total_episodes}; "
            "fetch the dataset again"
        )
    return sorted(rows, key=operator.itemgetter("episode_index"))


def _read_tasks(path: Path) -> dict[int, str]:
    """Return the instruction of each task; pandas has named the column `task` or not at all."""
    table = _read_parquet(path, None)
    names = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or not names:
        raise CorruptDataError(f"{path}: lacks task_index or the tasks; fetch the dataset again")
    texts = table.column("task" if "task" in names else names[0]).to_pylist()
    return dict(zip(table.column("task_index").to_pylist(), map(str, texts), strict=True))


def _read_parquet(path: Path, columns: list[str] | None) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InvalidError("LeRobot needs pyarrow: pip install 'continuon-brain[formats]'") from error
    try:
        table = pq.ParquetFile(path).read(columns=columns)
    except FileNotFoundError as error:
        raise CorruptDataError(f"{path} is missing; fetch the dataset again") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptDataError(f"{path}: {str(error)[:200]}; fetch the dataset again") from error
    missing = [name for name in columns or () if name not in table.column_names]
    if missing:
        raise CorruptDataError(f"{path}: lacks the column {missing[0]!r} that {INFO_PATH} names; fetch it again")
    return table


def _column(frames: Any, name: str, feature: Feature, steps: int) -> Column:
    """Return a column of `steps` rows as an array `[T, *shape]`, T texts or T images."""
    column = frames.column(name).combine_chunks()
    if column.null_count:
        raise CorruptDataError(f"{name}: {column.null_count} of {steps} frames have no value")
    if feature.dtype == "text":
        return [str(value) for value in column.to_pylist()]
    if feature.dtype == "image":
        images: list[Any] = [
            value.get("bytes") if isinstance(value, dict) else value for value in column.to_pylist()
        ]
        if not all(isinstance(image, bytes) for image in images):
            raise CorruptDataError(
                f"{name}: the images lie in files of their own; embed them in the parquet files"
            )
        found: list[bytes] = images
        return found
    # The lists of each row must have the feature's sizes, not only their sum.
    for size in feature.shape if feature.shape != (1,) or _is_list(column) else ():
        lengths = np.unique(np.asarray(column.value_lengths())) if _is_list(column) else np.zeros(1)
        if lengths.tolist() != [size]:
            raise CorruptDataError(
                f"{name}: rows of {', '.join(str(int(n)) for n in lengths)} values, {INFO_PATH} says {size}"
            )
        column = column.flatten()
    if column.null_count or _is_list(column):
        raise CorruptDataError(f"{name}: its values do not have the shape {list(feature.shape)} of {INFO_PATH}")
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "bfiu" or (values.dtype.kind == "b") != (feature.dtype == "bool"):
        raise CorruptDataError(f"{name}: holds {values.dtype}, {INFO_PATH} says {feature.dtype}")
    array: np.ndarray[Any, np.dtype[Any]] = values.astype(feature.dtype).reshape(steps, *feature.shape)
    return array


def _is_list(column: Any) -> bool:
    return hasattr(column, "value_lengths")


def _sized(feature: Feature, column: Column, name: str) -> Feature:
    """Return the feature with the shape that its images really have; LeRobot also writes channels first."""
    if feature.dtype != "image" or not isinstance(column, list) or not isinstance(column[0], bytes):
        return feature
    return Feature("image", read_image_header(column[0], name).shape)
