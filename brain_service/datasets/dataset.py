"""Random access to the episodes of a dataset on disk."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from brain_service.datasets.columns import (
    Column,
    Columns,
    Profile,
    action_name,
    step_features,
    valid_transitions,
)
from brain_service.datasets.manifest import MANIFEST_FILE, EpisodeEntry, Manifest, read_manifest
from brain_service.datasets.record import decode_episode
from brain_service.datasets.statistics import Statistics, read_statistics
from brain_service.datasets.tfrecord import read_record
from brain_service.datasets.versions import check_files, list_versions
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError
from brain_service.spec import EpisodeSpec, FeatureSpec

__all__ = ["Dataset", "EpisodeVectors", "open_dataset"]

CACHE_BYTES = 1024**3


@dataclass(frozen=True)
class EpisodeVectors:
    """One episode as flat vectors in the order of `spec.to_vector`, in raw units; T stored steps. No images.

    `valid` is 1 where action and reward mean something: not on the final step of the `rlds` profile.
    """

    observation: Float32[np.ndarray, "T D"]
    action: Float32[np.ndarray, "T A"]
    reward: Float32[np.ndarray, " T"]
    is_first: Bool[np.ndarray, " T"]
    is_terminal: Bool[np.ndarray, " T"]
    valid: Bool[np.ndarray, " T"]
    timestamp_ns: Int64[np.ndarray, " T"]
    control_role: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.control_role)

    @property
    def size_bytes(self) -> int:
        """Memory of the arrays in bytes."""
        arrays = (getattr(self, field.name) for field in fields(self) if field.name != "control_role")
        return sum(array.nbytes for array in arrays)


class Dataset:
    """An open dataset version. Reads are checked by CRC; safe to use from several threads.

    Decoded vectors stay in memory, the least recently used go first once they exceed `cache_bytes`.
    """

    def __init__(self, path: Path, cache_bytes: int = CACHE_BYTES) -> None:
        self.path = path
        self.manifest: Manifest = read_manifest(path)
        check_files(path, self.manifest)
        self.spec: EpisodeSpec = self.manifest.episode_spec()
        self._features = step_features(self.spec)
        self._cache: OrderedDict[tuple[str, int], EpisodeVectors] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0
        self._lock = threading.Lock()

    @cached_property
    def statistics(self) -> Statistics:
        """Figures of the training split."""
        return read_statistics(self.path)

    @property
    def profile(self) -> Profile:
        """What stands at the end of an episode: `oxe` or `rlds`."""
        return self.manifest.profile

    @property
    def control_period_s(self) -> float:
        """Median time between steps in seconds; 0 = unknown."""
        return self.manifest.control_period_s

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold episodes."""
        return tuple(self.manifest.splits)

    def entries(self, split: str) -> list[EpisodeEntry]:
        """Return a split's index.

        Raises:
            NotFoundError: there is no such split.
        """
        try:
            return self.manifest.splits[split]
        except KeyError as error:
            raise NotFoundError(
                f"{self.path} has no split {split!r}; it has {', '.join(self.splits)}"
                + ("; record at least two episodes to get a validation split" if split == "val" else "")
            ) from error

    def lengths(self, split: str) -> Int64[np.ndarray, " n"]:
        """Return the stored steps of each of a split's n episodes, in order, shape `[n]`.

        Raises:
            NotFoundError: there is no such split.
        """
        return np.array([entry.length for entry in self.entries(split)], np.int64)

    def read(self, split: str, index: int) -> Columns:
        """Return an episode's columns by name: arrays `[T, *shape]`, T texts, or T images as PNG or JPEG files.

        Names are `observation/<path>` and `action/<path>` with the spec's own shapes, and the step fields such
        as `reward`, `is_first`, `timestamp_ns` (nanoseconds), `control_role`.

        Raises:
            NotFoundError: there is no such split or episode.
            CorruptDataError: the record is gone, fails its checksum or lacks a feature; names shard and byte.
        """
        entries = self.entries(split)
        if not 0 <= index < len(entries):
            raise NotFoundError(f"{self.path}: split {split!r} has episodes 0 to {len(entries) - 1}, not {index}")
        entry = entries[index]
        place = f"{self.path / entry.shard}, episode {entry.episode_id}"
        columns = decode_episode(self._payload(entry), self._features, entry.length, place)
        for path, feature in self.spec.action.items():
            column = columns.pop(action_name(self.spec, path))
            if not isinstance(column, list):
                column = column.reshape(entry.length, *feature.shape)
            columns[f"action/{path}"] = column
        return columns

    def _payload(self, entry: EpisodeEntry) -> bytes:
        path = self.path / entry.shard
        try:
            with path.open("rb") as file:
                file.seek(entry.offset_bytes)
                payload = read_record(file, str(path))
        except OSError as error:
            raise CorruptDataError(
                f"{path}: {error.strerror}; restore it or convert the episodes again", file=entry.shard
            ) from error
        if payload is None:
            raise CorruptDataError(f"{path} ends before byte {entry.offset_bytes}", file=entry.shard)
        return payload

    def vectors(self, split: str, index: int) -> EpisodeVectors:
        """Return an episode as flat vectors; decoded once while the cache holds it. Do not write to the arrays.

        Raises:
            NotFoundError: there is no such split or episode.
            CorruptDataError: as in `read`.
        """
        key = (split, index)
        with self._lock:
            if (found := self._cache.get(key)) is not None:
                self._cache.move_to_end(key)
                return found
        made = _to_vectors(self.read(split, index), self.spec, self.profile)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = made
                self._cached_bytes += made.size_bytes
            while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
                _, dropped = self._cache.popitem(last=False)
                self._cached_bytes -= dropped.size_bytes
        return made


def _to_vectors(columns: Columns, spec: EpisodeSpec, profile: Profile) -> EpisodeVectors:
    is_last = _array(columns["is_last"])
    return EpisodeVectors(
        observation=_stack(columns, "observation", spec.observation, len(is_last)),
        action=_stack(columns, "action", spec.action, len(is_last)),
        reward=_array(columns["reward"]),
        is_first=_array(columns["is_first"]),
        is_terminal=_array(columns["is_terminal"]),
        valid=valid_transitions(is_last, profile),
        timestamp_ns=_array(columns["timestamp_ns"]),
        control_role=tuple(map(str, columns["control_role"])),
    )


def _array(column: Column) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    assert isinstance(column, np.ndarray)  # numeric by its feature
    return column


def _stack(columns: Columns, part: str, spec: FeatureSpec, length: int) -> Float32[np.ndarray, "T D"]:
    names = [f"{part}/{path}" for path, feature in spec.items() if feature.is_numeric]
    flat = [_array(columns[name]).reshape(length, -1).astype(np.float32) for name in names]
    return np.concatenate(flat, axis=1) if flat else np.zeros((length, 0), np.float32)


def open_dataset(path: str | Path, *, cache_bytes: int = CACHE_BYTES) -> Dataset:
    """Open a dataset by its version folder, its name folder (newest version) or a root that holds one name.

    The index is held against the files at once; the data is checked as it is read.

    Raises:
        NotFoundError: nothing there is a dataset.
        InvalidError: the root holds several datasets; names them.
        CorruptDataError: a file is missing, has another size, or the index cannot be read.
    """
    folder = Path(path)
    if (folder / MANIFEST_FILE).is_file():
        return Dataset(folder, cache_bytes)
    if versions := list_versions(folder):
        return Dataset(folder / versions[-1], cache_bytes)
    names = sorted(child for child in folder.iterdir() if list_versions(child)) if folder.is_dir() else []
    if len(names) == 1:
        return Dataset(names[0] / list_versions(names[0])[-1], cache_bytes)
    if names:
        raise InvalidError(
            f"{folder} holds several datasets, {', '.join(name.name for name in names)}; give one of their folders"
        )
    raise NotFoundError(f"no dataset at {folder}; make one with convert_directory_to_tfrecord or POST /convert")
