"""Where a TFDS dataset lies and which files its splits are: `dataset_info.json`.

Source: `tensorflow_datasets/core/{naming.py,proto/dataset_info.proto}`, in proto3 JSON.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from brain_service.datasets.layout import INFO_FILE
from brain_service.datasets.versions import list_versions
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError

__all__ = ["Shard", "find_folder", "list_shards", "read_json"]


@dataclass(frozen=True)
class Shard:
    """One file of a split: `length` episodes, the first of which is the split's number `first`."""

    path: Path
    split: str
    first: int
    length: int


def find_folder(path: Path) -> Path:
    """Return the version folder at or below `path`.

    Raises:
        NotFoundError: there is none.
        InvalidError: there are several datasets.
    """
    if (path / INFO_FILE).is_file():
        return path
    if versions := list_versions(path):
        return path / versions[-1]
    names = sorted(child for child in path.iterdir() if list_versions(child)) if path.is_dir() else []
    if len(names) > 1:
        raise InvalidError(f"{path} holds several datasets, {', '.join(n.name for n in names)}; give one of them")
    if not names:
        raise NotFoundError(f"no TFDS dataset at {path}: give the folder that holds {INFO_FILE}")
    return names[0] / list_versions(names[0])[-1]


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file.

    Raises:
        NotFoundError: the file is missing.
        CorruptDataError: it is none.
    """
    try:
        document = orjson.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} is missing: TFDS 4 writes it beside the shards; fetch it as well") from error
    except orjson.JSONDecodeError as error:
        raise CorruptDataError(f"{path}: {error}; fetch it again") from error
    if not isinstance(document, dict):
        raise CorruptDataError(f"{path}: not a JSON object; fetch it again")
    return document


def list_shards(folder: Path, info: Mapping[str, Any]) -> list[Shard]:
    """Return the files of all splits; whether they are there shows on reading.

    Raises:
        InvalidError: the files are no TFRecords.
        CorruptDataError: the description of the splits is incomplete.
    """
    file_format = info.get("fileFormat") or "tfrecord"
    if file_format != "tfrecord":
        raise InvalidError(f"{folder}: its files are {file_format}, not tfrecord; write it with TFDS as tfrecord")
    shards = []
    try:
        for split in info["splits"]:
            lengths = [int(length) for length in split["shardLengths"]]
            template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
            for index, length in enumerate(lengths):
                width = max(5, len(str(len(lengths))))
                file = template.format(
                    DATASET=info["name"],
                    SPLIT=split["name"],
                    FILEFORMAT=file_format,
                    SHARD_INDEX=f"{index:0{width}d}",
                    NUM_SHARDS=f"{len(lengths):0{width}d}",
                    SHARD_X_OF_Y=f"{index:0{width}d}-of-{len(lengths):0{width}d}",
                )
                shards.append(Shard(folder / Path(file).name, split["name"], sum(lengths[:index]), length))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CorruptDataError(
            f"{folder / INFO_FILE}: its splits lack or garble {error}; fetch it again"
        ) from error
    return shards
