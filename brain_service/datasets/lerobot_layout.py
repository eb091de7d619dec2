"""LeRobot's dataset format v3.0: its files, and how our features are named and described in it.

    meta/info.json  meta/stats.json  meta/tasks.parquet
    meta/episodes/chunk-000/file-000.parquet    a row an episode: where its frames are, its tasks, its statistics
    data/chunk-000/file-000.parquet             a row a frame

Source: `lerobot/datasets/{utils,lerobot_dataset}.py` at codebase version v3.0.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

from brain_service.errors import InvalidError
from brain_service.spec import EpisodeSpec, Feature

__all__ = [
    "ACTION",
    "CODEBASE_VERSION",
    "DATA_PATH",
    "EPISODES_PATH",
    "FILES_A_CHUNK",
    "FILE_MB",
    "INDEX_FEATURES",
    "INFO_PATH",
    "STATS_PATH",
    "STEP_FEATURES",
    "TASKS_PATH",
    "action_parts",
    "feature_names",
    "info_json",
]

ACTION = "action"
"""The one action that LeRobot's policies look for."""

CODEBASE_VERSION = "v3.0"
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FILES_A_CHUNK = 1000
FILE_MB = 100

INDEX_FEATURES: Mapping[str, Feature] = {
    "timestamp": Feature("float32", (1,)),
    "frame_index": Feature("int64", (1,)),
    "episode_index": Feature("int64", (1,)),
    "index": Feature("int64", (1,)),
    "task_index": Feature("int64", (1,)),
}
"""What every LeRobot dataset has; `timestamp` is `frame_index / fps` in seconds."""

STEP_FEATURES: Mapping[str, Feature] = {
    "next.reward": Feature("float32", (1,)),
    "next.done": Feature("bool", (1,)),
    "next.truncated": Feature("bool", (1,)),
    "timestamp_ns": Feature("int64", (1,)),
    "control_role": Feature("text", (1,)),
}
"""What else we write: LeRobot's names where it has some, ours for the true time and for who acted."""

# The largest array that `datasets` has a type for (Array5D).
_MAX_RANK = 5


def feature_names(spec: EpisodeSpec, images: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Return LeRobot's names of a dataset's columns, `{column: name}`, and why others are left out.

    Paths nest with dots. Images go below `observation.images`, where policies look for cameras. A single action is
    `action`, several are `action.<path>`.

    Raises:
        InvalidError: two features would have one name, or nothing is left of observation or action.
    """
    names: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for part, features in (("observation", spec.observation), ("action", spec.action)):
        for path, feature in features.items():
            column = f"{part}/{path}"
            if feature.dtype == "text":
                left_out[column] = "policies would take a text for a vector; the instruction becomes the task"
            elif feature.dtype == "image" and not images:
                left_out[column] = "images are left out unless asked for with --images"
            elif len(feature.shape) > _MAX_RANK:
                left_out[column] = f"{len(feature.shape)} axes are more than the {_MAX_RANK} that LeRobot holds"
            elif feature.dtype == "image":
                names[column] = f"observation.images.{path.removeprefix('images/').replace('/', '.')}"
            else:
                names[column] = column.replace("/", ".")
    if len(actions := action_parts(names)) == 1:
        names[actions[0]] = ACTION
    taken: dict[str, str] = {}
    for column, name in names.items():
        if name in taken:
            raise InvalidError(
                f"{taken[name]} and {column} would both be {name} in LeRobot; rename one", field=column
            )
        taken[name] = column
    for part in ("observation", "action"):
        if not any(column.startswith(f"{part}/") for column in names):
            reasons = "; ".join(f"{column}: {why}" for column, why in left_out.items())
            raise InvalidError(f"LeRobot can hold nothing of this dataset's {part}: {reasons}", field=part)
    return names, left_out


def action_parts(names: Mapping[str, str]) -> list[str]:
    """Return the columns of the action in the order of its flat vector."""
    return [column for column in names if column.startswith(f"{ACTION}/")]


def describe_feature(name: str, feature: Feature) -> dict[str, Any]:
    """Return the entry of `info.json` for a feature."""
    dtype = "string" if feature.dtype == "text" else feature.dtype
    shape = list(feature.shape) or [1]
    names: list[str] | None = None
    if dtype == "image":
        names = ["height", "width", "channels"]
    elif len(feature.shape) == 1 and name not in INDEX_FEATURES and name not in STEP_FEATURES:
        leaf = name.rpartition(".")[2]
        names = [f"{leaf}_{n}" for n in range(prod(feature.shape))]
    return {"dtype": dtype, "shape": shape, "names": names}


def info_json(
    features: Mapping[str, Feature],
    *,
    fps: int,
    robot_type: str | None,
    frames: int,
    tasks: int,
    splits: Mapping[str, tuple[int, int]],
) -> dict[str, Any]:
    """Return the document of `info.json`; `splits` gives the first episode of each split and the one behind it.

    `fps` is in frames a second, `frames` and `tasks` are counts.
    """
    return {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": robot_type,
        "total_episodes": max((stop for _, stop in splits.values()), default=0),
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": FILES_A_CHUNK,
        "data_files_size_in_mb": FILE_MB,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {split: f"{first}:{stop}" for split, (first, stop) in splits.items()},
        "data_path": DATA_PATH,
        "video_path": None,
        "features": {name: describe_feature(name, feature) for name, feature in features.items()},
    }
