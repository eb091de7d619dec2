"""Random access to the episodes of a dataset on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from brain_service.datasets.access import EpisodeAccess, Steps, Window
from brain_service.datasets.columns import Column, Columns, Profile, action_name, valid_transitions
from brain_service.datasets.example import decode_example
from brain_service.datasets.manifest import MANIFEST_FILE, EpisodeEntry, Manifest, parse_manifest
from brain_service.datasets.record import decode_episode
from brain_service.datasets.statistics import STATISTICS_FILE, Statistics, parse_statistics
from brain_service.datasets.storage import Folder, LocalFolder, Range, open_folder
from brain_service.datasets.stored import Layout
from brain_service.datasets.tfrecord import FRAME_BYTES, unframe
from brain_service.datasets.versions import check_index, sort_versions
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError
from brain_service.spec import EpisodeSpec, FeatureSpec

__all__ = ["Dataset", "EpisodeVectors", "open_dataset"]

CACHE_BYTES = 256 * 1024**2
"""Default memory for what was checked: beside a training on a machine of 4 GB. A local dataset of 20 GB fits."""


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


class Dataset:
    """An open dataset version. Reads are checked by CRC; safe to use from several threads and in worker processes.

    What was checked of the episodes last used stays in memory, at most `cache_bytes` a split.
    """

    def __init__(self, folder: Folder, cache_bytes: int = CACHE_BYTES) -> None:
        self.folder = folder
        try:
            data = folder.read(MANIFEST_FILE)
        except NotFoundError as error:
            raise CorruptDataError(f"{error.detail}; convert the episodes again to rebuild it") from error
        self.manifest: Manifest = parse_manifest(data, f"{folder.location}/{MANIFEST_FILE}")
        check_index(folder, self.manifest)
        _check_entries(self.manifest, folder.location)
        self.spec: EpisodeSpec = self.manifest.episode_spec()
        self._layout = Layout(self.spec, self.manifest.profile)
        self._access = {
            split: EpisodeAccess(folder, entries, self._layout, cache_bytes)
            for split, entries in self.manifest.splits.items()
        }

    @property
    def location(self) -> str:
        """Where the version lies, as a user would type it."""
        return self.folder.location

    @property
    def path(self) -> Path:
        """The version's folder on this machine.

        Raises:
            InvalidError: it lies on a bucket.
        """
        if not isinstance(self.folder, LocalFolder):
            raise InvalidError(f"{self.location} is no folder of this machine; download it first", field="path")
        return self.folder.path

    @cached_property
    def statistics(self) -> Statistics:
        """Figures of the training split.

        Raises:
            CorruptDataError: their file is missing or is not what was written.
        """
        try:
            data = self.folder.read(STATISTICS_FILE)
        except NotFoundError as error:
            raise CorruptDataError(f"{error.detail}; convert the episodes again to rebuild it") from error
        return parse_statistics(data, f"{self.location}/{STATISTICS_FILE}")

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

    @property
    def observation_size(self) -> int:
        """D: an observation's flat vector has shape `[D]`."""
        return sum(column.width for column in self._layout.observation)

    @property
    def action_size(self) -> int:
        """A: an action's flat vector has shape `[A]`."""
        return sum(column.width for column in self._layout.action)

    @property
    def cached_bytes(self) -> int:
        """Memory in bytes that what was checked takes, over all splits."""
        return sum(access.cached_bytes for access in self._access.values())

    def entries(self, split: str) -> list[EpisodeEntry]:
        """Return a split's index.

        Raises:
            NotFoundError: there is no such split.
        """
        try:
            return self.manifest.splits[split]
        except KeyError as error:
            raise NotFoundError(
                f"{self.location} has no split {split!r}; it has {', '.join(self.splits)}"
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
        entry, payload, place = self._payload(split, index)
        columns = decode_episode(payload, self._layout.features, entry.length, place)
        for path, feature in self.spec.action.items():
            column = columns.pop(action_name(self.spec, path))
            if not isinstance(column, list):
                column = column.reshape(entry.length, *feature.shape)
            columns[f"action/{path}"] = column
        return columns

    def metadata(self, split: str, index: int) -> dict[str, str | int | float]:
        """Return what an episode's record says of it by the names of `episode_metadata`, such as `robot_id`.

        Raises:
            NotFoundError: there is no such split or episode.
            CorruptDataError: the record is gone or fails its checksum; names shard and byte.
        """
        _, payload, place = self._payload(split, index)
        prefix = "episode_metadata/"
        found: dict[str, str | int | float] = {}
        for key, values in decode_example(payload, place).items():
            if key.startswith(prefix) and len(values):
                first = values[0]
                plain = first.decode(errors="replace") if isinstance(first, bytes) else first.item()
                found[key.removeprefix(prefix)] = plain
        return found

    def _payload(self, split: str, index: int) -> tuple[EpisodeEntry, bytes, str]:
        """Return an episode's entry, its checked record, and what stands for the record in errors."""
        entries = self.entries(split)
        if not 0 <= index < len(entries):
            raise NotFoundError(
                f"{self.location}: split {split!r} has episodes 0 to {len(entries) - 1}, not {index}"
            )
        entry = entries[index]
        shard = f"{self.location}/{entry.shard}"
        (record,) = self.folder.read_ranges([Range(entry.shard, entry.offset_bytes, entry.size_bytes)])
        if not record:
            raise CorruptDataError(f"{shard} ends before byte {entry.offset_bytes}", file=entry.shard)
        payload = unframe(record, shard, entry.offset_bytes)
        return entry, payload, f"{shard}, byte {entry.offset_bytes}, episode {entry.episode_id}"

    def vectors(self, split: str, index: int) -> EpisodeVectors:
        """Return a whole episode as flat vectors, decoded anew. Do not write to the arrays.

        Raises:
            NotFoundError: there is no such split or episode.
            CorruptDataError: as in `read`.
        """
        return _to_vectors(self.read(split, index), self.spec, self.profile)

    def windows(self, split: str, wanted: Sequence[Steps]) -> list[Window]:
        """Return windows of a split's episodes, in order: random access that reads little more than they hold.

        Raises:
            NotFoundError: there is no such split.
            CorruptDataError: a record is gone or fails its checksum, names shard and byte.
            UnavailableError: the bucket cannot be reached.
        """
        self.entries(split)
        return self._access[split].windows(wanted)

    def images(self, split: str, path: str, wanted: Steps) -> list[bytes]:
        """Return the PNG or JPEG files of one image feature over some steps of an episode, in order.

        Raises:
            NotFoundError: there is no such split.
            InvalidError: the observation has no such image.
            CorruptDataError: a record is gone or fails its checksum, names shard and byte.
            UnavailableError: the bucket cannot be reached.
        """
        self.entries(split)
        if path not in self._layout.images:
            raise InvalidError(f"{self.location} has no image {path!r}", field=f"observation/{path}")
        return self._access[split].images(path, wanted)


def _check_entries(manifest: Manifest, location: str) -> None:
    """Check that every entry of the index can be one.

    Raises:
        CorruptDataError: one has no step, or no place in a file; names the episode.
    """
    for entries in manifest.splits.values():
        for entry in entries:
            if entry.length < 1 or entry.offset_bytes < 0 or entry.size_bytes < FRAME_BYTES:
                raise CorruptDataError(
                    f"{location}/{MANIFEST_FILE}: episode {entry.episode_id} of {entry.length} steps in "
                    f"{entry.size_bytes} bytes at byte {entry.offset_bytes} cannot be; convert the episodes again",
                    file=MANIFEST_FILE,
                )


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

    The place is a local path or `gs://bucket/path`. The index is held against the files at once; the data is
    checked as it is read.

    Raises:
        NotFoundError: nothing there is a dataset, or there is no such bucket.
        InvalidError: the root holds several datasets; names them.
        CorruptDataError: a file is missing, has another size, or the index cannot be read.
        UnavailableError: the bucket cannot be reached.
        ConfigError: `gs://` and gcsfs is not installed.
    """
    folder = open_folder(path)
    if MANIFEST_FILE in folder.sizes():
        return Dataset(folder, cache_bytes)
    children = folder.subfolders()
    if versions := sort_versions(children):
        return Dataset(folder.child(versions[-1]), cache_bytes)
    names = [name for name in children if sort_versions(folder.child(name).subfolders())]
    if len(names) == 1:
        return open_dataset(folder.child(names[0]).location, cache_bytes=cache_bytes)
    if names:
        raise InvalidError(
            f"{folder.location} holds several datasets, {', '.join(names)}; give one of their folders"
        )
    hint = "make one with convert_directory_to_tfrecord or POST /convert"
    if not isinstance(folder, LocalFolder):
        hint = "check the bucket and the path, or upload one"
    raise NotFoundError(f"no dataset at {folder.location}; {hint}")
