"""A LeRobot v3.0 dataset on disk: its description, and its parquet files as columns."""

import operator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from brain_service.datasets.lerobot_layout import CODEBASE_VERSION, INFO_PATH
from brain_service.episodes.episode import Column
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError
from brain_service.image_header import read_image_header
from brain_service.spec import Dtype, Feature
from brain_service.structs import prepared

__all__ = [
    "LeRobotInfo",
    "known_features",
    "read_column",
    "read_episode_rows",
    "read_info",
    "read_parquet",
    "read_tasks",
    "sized_feature",
]

_CONVERTER = "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30"
_DTYPES: dict[str, Dtype] = {
    "bool": "bool",
    "uint8": "uint8",
    "string": "text",
    "image": "image",
    **dict.fromkeys(("int8", "int16", "int32", "int64", "uint16", "uint32"), "int64"),
    **dict.fromkeys(("float16", "float32", "float64"), "float32"),
}


@prepared
class LeRobotInfo(msgspec.Struct, kw_only=True):
    """What of `info.json` an import needs."""

    codebase_version: str
    fps: float
    features: dict[str, dict[str, Any]]
    total_episodes: int
    data_path: str
    robot_type: str | None = None


def read_info(folder: Path) -> LeRobotInfo:
    """Return the document of `info.json`.

    Raises:
        NotFoundError: there is none.
        InvalidError: it is of another version; names the converter.
        CorruptDataError: it is no JSON, or a member is missing or wrong.
    """
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
        return msgspec.convert(document, LeRobotInfo)
    except FileNotFoundError as error:
        raise NotFoundError(f"no LeRobot dataset at {folder}: {INFO_PATH} is missing") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptDataError(f"{path}: {error}; fetch the dataset again") from error


def known_features(info: LeRobotInfo) -> tuple[dict[str, Feature], dict[str, str]]:
    """Return the features that can be read, and why others cannot.

    Raises:
        CorruptDataError: one that says where a frame belongs is missing.
    """
    known: dict[str, Feature] = {}
    unreadable: dict[str, str] = {}
    for name, described in info.features.items():
        dtype, shape = described.get("dtype"), described.get("shape") or []
        if dtype == "video":
            unreadable[name] = "videos are not decoded; convert them to images, or use the vectors alone"
        elif dtype not in _DTYPES:
            unreadable[name] = f"its dtype {dtype} is none of {', '.join(_DTYPES)}"
        elif not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
            unreadable[name] = f"its shape {shape} is not a list of positive integers"
        else:
            known[name] = Feature(_DTYPES[dtype], () if dtype == "string" else tuple(shape))
    missing = sorted({"episode_index", "frame_index"} - known.keys())
    if missing:
        raise CorruptDataError(f"{INFO_PATH}: features lacks {', '.join(missing)}; fetch the dataset again")
    return known, unreadable


def read_episode_rows(folder: Path, info: LeRobotInfo) -> list[dict[str, Any]]:
    """Return the rows of the episode index without their statistics, in order.

    Raises:
        CorruptDataError: a file is damaged or garbled, or they are not as many as `info.json` says.
    """
    needed = ("episode_index", "length", "data/chunk_index", "data/file_index")
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "meta" / "episodes").glob("*/*.parquet")):
        table = read_parquet(path, None)
        missing = [name for name in needed if name not in table.column_names]
        if missing:
            raise CorruptDataError(f"{path}: lacks {', '.join(missing)}; fetch the dataset again")
        found = table.select([n for n in table.column_names if not n.startswith("stats/")]).to_pylist()
        if not all(type(row[name]) is int and row[name] >= 0 for row in found for name in needed):
            raise CorruptDataError(f"{path}: {', '.join(needed)} are not whole numbers; fetch the dataset again")
        rows += found
    if len(rows) != info.total_episodes:
        raise CorruptDataError(
            f"{folder / 'meta' / 'episodes'} lists {len(rows)} episodes, {INFO_PATH} says {info.total_episodes}; "
            "fetch the dataset again"
        )
    return sorted(rows, key=operator.itemgetter("episode_index"))


def read_tasks(path: Path) -> dict[int, str]:
    """Return the instruction of each task by its index from 0; pandas has named the column `task` or not at all.

    Raises:
        CorruptDataError: the file is missing, damaged or lacks a column.
    """
    table = read_parquet(path, None)
    names = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or not names:
        raise CorruptDataError(f"{path}: lacks task_index or the tasks; fetch the dataset again")
    texts = table.column("task" if "task" in names else names[0]).to_pylist()
    return dict(zip(table.column("task_index").to_pylist(), map(str, texts), strict=True))


def read_parquet(path: Path, columns: list[str] | None) -> Any:
    """Return a parquet file as an Arrow table, of these columns alone or (None) of all.

    Raises:
        InvalidError: pyarrow is not installed.
        CorruptDataError: the file is missing, cut, garbled or lacks a column.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InvalidError("LeRobot needs pyarrow: pip install 'continuon-brain[formats]'") from error
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read(columns=columns)
        # Where there were no checksums: offsets outside the data, texts that are none.
        table.validate(full=True)
    except FileNotFoundError as error:
        raise CorruptDataError(f"{path} is missing; fetch the dataset again") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorruptDataError(f"{path}: {str(error)[:200]}; fetch the dataset again") from error
    missing = [name for name in columns or () if name not in table.column_names]
    if missing:
        raise CorruptDataError(f"{path}: lacks the column {missing[0]!r} that {INFO_PATH} names; fetch it again")
    return table


def read_column(frames: Any, name: str, feature: Feature, steps: int) -> Column:
    """Return a column of `steps` rows as an array `[T, *shape]`, T texts or T images.

    Raises:
        CorruptDataError: values are missing, ragged, of another kind or outside the file; names the feature.
    """
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


def sized_feature(feature: Feature, column: Column, name: str) -> Feature:
    """Return the feature with the shape that its images really have; LeRobot also writes channels first."""
    if feature.dtype != "image" or not isinstance(column, list) or not isinstance(column[0], bytes):
        return feature
    return Feature("image", read_image_header(column[0], name).shape)
