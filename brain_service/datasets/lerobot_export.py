"""A dataset as a LeRobot v3.0 dataset: parquet alone, no video.

One captured step becomes one frame. `timestamp` is the frame's place at the nominal rate, as LeRobot has it;
`timestamp_ns` beside it is the true time. Features of nested names get dotted ones. Several actions stand there
one by one, and joined as `action`, the flat vector that LeRobot's policies learn.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from brain_service.datasets.columns import Columns
from brain_service.datasets.export_source import ExportEpisode, ExportNotes, ExportRequest, Transitions
from brain_service.datasets.lerobot_layout import (
    ACTION,
    DATA_PATH,
    EPISODES_PATH,
    INDEX_FEATURES,
    INFO_PATH,
    STATS_PATH,
    STEP_FEATURES,
    TASKS_PATH,
    action_parts,
    feature_names,
    info_json,
)
from brain_service.datasets.lerobot_stats import FeatureSummary, stat_rows, stat_shape
from brain_service.errors import InvalidError
from brain_service.spec import Feature

__all__ = ["LeRobotExport"]

_ROWS_A_GROUP = 100


@dataclass(frozen=True)
class LeRobotExport:
    """Writes LeRobot v3.0 with pyarrow."""

    def write(self, request: ExportRequest, folder: Path) -> ExportNotes:
        """Write all episodes of the request.

        Raises:
            InvalidError: pyarrow is not installed, the rate is unknown, or LeRobot has no form for the features.
            CorruptDataError: an episode cannot be read.
            OSError: the medium is full.
        """
        try:
            from brain_service.datasets.lerobot_parquet import ParquetFiles, write_tasks
        except ImportError as error:
            raise InvalidError("LeRobot needs pyarrow: pip install 'continuon-brain[formats]'") from error
        notes = ExportNotes()
        fps = _rate(request, notes)
        names, notes.left_out = feature_names(request.dataset.spec, request.images)
        features = _features(request, names)
        joined = [] if ACTION in names.values() else action_parts(names)
        if joined:
            features[ACTION] = Feature("float32", (sum(prod(features[names[part]].shape) for part in joined),))
        state = _State(fps, names, joined, features, notes)
        with ParquetFiles(folder, DATA_PATH) as data, ParquetFiles(folder, EPISODES_PATH) as index:
            rows: list[dict[str, Any]] = []
            for episode in request.episodes():
                rows.append(_write_episode(episode, state, data))
                if len(rows) == _ROWS_A_GROUP:
                    _write_rows(rows, index)
                    rows = []
            if rows:
                _write_rows(rows, index)
        write_tasks(folder / TASKS_PATH, list(state.tasks))
        info = info_json(
            features,
            fps=fps,
            robot_type=request.robot_type or state.robot_type,
            frames=notes.steps,
            tasks=len(state.tasks),
            splits=state.splits,
        )
        if joined:
            info["features"][ACTION]["names"] = _axis_names(joined, names, features)
        (folder / INFO_PATH).write_bytes(orjson.dumps(info, option=orjson.OPT_INDENT_2))
        figures = {name: summary.result() for name, summary in state.summaries.items()}
        (folder / STATS_PATH).write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
        notes.facts |= {"codebase_version": info["codebase_version"], "fps": fps, "tasks": len(state.tasks)}
        return notes


@dataclass
class _State:
    """What grows while episodes are written."""

    fps: int
    names: Mapping[str, str]
    joined: list[str]
    features: Mapping[str, Feature]
    notes: ExportNotes
    tasks: dict[str, int] = field(default_factory=dict)
    splits: dict[str, tuple[int, int]] = field(default_factory=dict)
    robot_type: str | None = None
    summaries: dict[str, FeatureSummary] = field(default_factory=dict)

    def summarize(self, columns: Columns) -> dict[str, Any]:
        """Add an episode's frames to the figures of all, and return those of the episode as columns of its row."""
        found: dict[str, Any] = {}
        for name, feature in self.features.items():
            if feature.dtype == "text":
                continue
            rows, count = stat_rows(columns[name], feature)
            own = FeatureSummary(stat_shape(feature))
            for summary in (own, self.summaries.setdefault(name, FeatureSummary(stat_shape(feature)))):
                summary.add(rows, count)
            found |= {f"stats/{name}/{figure}": value for figure, value in own.result().items()}
        return found


def _rate(request: ExportRequest, notes: ExportNotes) -> int:
    """Return the frames a second, a whole number: what was asked for, or what the control period says.

    Raises:
        InvalidError: neither tells.
    """
    if request.fps is not None:
        return request.fps
    period_s = request.dataset.control_period_s
    if period_s <= 0:
        raise InvalidError("the dataset does not tell its control period: give --fps", field="fps")
    fps = max(1, round(1 / period_s))
    if abs(fps * period_s - 1) > 0.01:
        notes.warnings.append(
            f"the control period of {period_s:.6g} s is {1 / period_s:.4g} steps a second; LeRobot takes whole "
            f"numbers, so its timestamps say {fps}; timestamp_ns keeps the true times"
        )
    return fps


def _features(request: ExportRequest, names: Mapping[str, str]) -> dict[str, Feature]:
    spec = request.dataset.spec
    known = {f"observation/{path}": feature for path, feature in spec.observation.items()}
    known |= {f"action/{path}": feature for path, feature in spec.action.items()}
    return {name: known[column] for column, name in names.items()} | dict(STEP_FEATURES) | dict(INDEX_FEATURES)


def _axis_names(joined: list[str], names: Mapping[str, str], features: Mapping[str, Feature]) -> list[str]:
    """Return what each number of the joined action is: `arm.command_0`, `arm.command_1`, `gripper_0`."""
    parts = [(names[part].removeprefix(f"{ACTION}."), prod(features[names[part]].shape)) for part in joined]
    return [f"{name}_{n}" for name, size in parts for n in range(size)]


def _write_episode(episode: ExportEpisode, state: _State, files: Any) -> dict[str, Any]:
    """Append an episode's frames and return its row of the index."""
    import pyarrow as pa

    from brain_service.datasets.lerobot_parquet import arrow_column

    notes, number = state.notes, state.notes.episodes
    transitions = episode.transitions()
    columns = _frames(transitions, state, number)
    times: Any = columns["timestamp_ns"]
    notes.check_pace(episode.entry.episode_id, times, 1 / state.fps)
    table = pa.table({name: arrow_column(columns[name], feature) for name, feature in state.features.items()})
    chunk, file = files.place(table.nbytes)
    files.write(table)
    first, length = notes.steps, len(transitions)
    start, _ = state.splits.get(episode.split, (number, number))
    state.splits[episode.split] = (start, number + 1)
    state.robot_type = state.robot_type or episode.metadata.get("robot_id") or None
    notes.episodes += 1
    notes.steps += length
    instructions = transitions.columns["language_instruction"]
    return {
        "episode_index": number,
        "tasks": list(dict.fromkeys(instructions)),
        "length": length,
        "data/chunk_index": chunk,
        "data/file_index": file,
        "dataset_from_index": first,
        "dataset_to_index": first + length,
        "episode_id": episode.entry.episode_id,
        "end": episode.entry.end,
        "metadata_json": json.dumps(episode.metadata, sort_keys=True),
        **state.summarize(columns),
    }


def _frames(transitions: Transitions, state: _State, number: int) -> Columns:
    """Return the columns of an episode's frames by LeRobot's names."""
    columns, length = transitions.columns, len(transitions)
    frame = np.arange(length, dtype=np.int64)
    done = frame == length - 1
    tasks = [state.tasks.setdefault(str(text), len(state.tasks)) for text in columns["language_instruction"]]
    frames = {name: columns[column] for column, name in state.names.items()}
    if state.joined:
        parts = [np.asarray(columns[part], np.float32).reshape(length, -1) for part in state.joined]
        frames[ACTION] = np.concatenate(parts, axis=1)
    return {
        **frames,
        "next.reward": columns["reward"],
        "next.done": done,
        "next.truncated": done & (not transitions.terminated),
        "timestamp_ns": columns["timestamp_ns"],
        "control_role": columns["control_role"],
        "timestamp": (frame / state.fps).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.full(length, number, np.int64),
        "index": frame + state.notes.steps,
        "task_index": np.array(tasks, np.int64),
    }


def _write_rows(rows: list[dict[str, Any]], files: Any) -> None:
    import pyarrow as pa

    table = pa.Table.from_pylist(rows)
    chunk, file = files.place(table.nbytes)
    for name, value in (("meta/episodes/chunk_index", chunk), ("meta/episodes/file_index", file)):
        table = table.append_column(name, pa.array([value] * len(rows), pa.int64()))
    files.write(table)
