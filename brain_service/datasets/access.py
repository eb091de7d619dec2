"""Random access to (episode, step) windows of a dataset's shards, with a bounded memory of what was checked."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from brain_service.datasets.manifest import EpisodeEntry
from brain_service.datasets.record import decode_episode
from brain_service.datasets.storage import Folder, LocalFolder, Range
from brain_service.datasets.stored import Layout, StoredEpisode, open_record
from brain_service.datasets.tfrecord import unframe

__all__ = ["EpisodeAccess", "Steps", "Window"]

# What is read in one go of episodes that were not seen yet: image episodes are large, and a batch names many.
_READ_BYTES = 64 * 1024**2


class Steps(NamedTuple):
    """Steps `first` to `stop` of a split's episode number `episode`."""

    episode: int
    first: int
    stop: int


@dataclass(frozen=True, eq=False)
class Window:
    """T consecutive steps of one episode as flat vectors in the order of `spec.to_vector`, in raw units.

    `valid` is 1 where action and reward mean something. `is_terminal` is 1 where the action ended the episode, and
    on the observation that this led to where it is a step of its own. `role` indexes `roles`, the control roles
    that occur in the episode. Do not write to the arrays.
    """

    observation: Float32[np.ndarray, "T D"]
    action: Float32[np.ndarray, "T A"]
    reward: Float32[np.ndarray, " T"]
    is_first: Bool[np.ndarray, " T"]
    is_terminal: Bool[np.ndarray, " T"]
    valid: Bool[np.ndarray, " T"]
    role: np.ndarray[Any, np.dtype[Any]]
    roles: tuple[str, ...]


class EpisodeAccess:
    """Reads windows of one split. Safe to use from several threads, and picklable for worker processes.

    The indices of the episodes last used stay in memory, up to `cache_bytes`; they take about 2 % of their data.
    On a bucket so do the episodes themselves, which else are read again by ranges.
    """

    def __init__(self, folder: Folder, entries: Sequence[EpisodeEntry], layout: Layout, cache_bytes: int) -> None:
        self._folder = folder
        self._entries = entries
        self._layout = layout
        self._keep = not isinstance(folder, LocalFolder)  # the page cache of this machine keeps its own files
        self._cache_bytes = cache_bytes
        self._forget()

    def _forget(self) -> None:
        self._cached: OrderedDict[int, StoredEpisode] = OrderedDict()
        self._whole: OrderedDict[int, None] = OrderedDict()  # those of them whose payload is kept
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        held = {"_cached", "_whole", "_cached_bytes", "_lock"}
        return {name: value for name, value in vars(self).items() if name not in held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    @property
    def cached_bytes(self) -> int:
        """Memory in bytes that the episodes last used take."""
        return self._cached_bytes

    def windows(self, spans: Sequence[Steps]) -> list[Window]:
        """Return the windows of the spans, in order; what of them has to be read is read together.

        Raises:
            CorruptDataError: a record fails its checksum; names shard and byte.
            UnavailableError: the bucket cannot be reached.
        """
        episodes = self._open({span.episode for span in spans})
        ranges: list[Range] = []
        counts: list[tuple[int, int]] = []
        for span in spans:
            stored = episodes[span.episode]
            here: list[list[Range]] = [[], []]
            if stored.payload is None:
                here = [stored.ranges(part, span.first, span.stop) for part in self._parts]
            ranges += here[0] + here[1]
            counts.append((len(here[0]), len(here[1])))
        pieces = iter(self._folder.read_ranges(ranges) if ranges else [])
        return [
            self._window(episodes[span.episode], span, *(_take(pieces, count) for count in its))
            for span, its in zip(spans, counts, strict=True)
        ]

    def images(self, path: str, span: Steps) -> list[bytes]:
        """Return the image files of a span's steps, as they were recorded; reads little more than they are.

        Raises:
            CorruptDataError: the record is gone, fails its checksum or does not hold them; names shard and byte.
            UnavailableError: the bucket cannot be reached.
        """
        stored = self._open({span.episode})[span.episode]
        if path not in stored.files:
            return self._decoded_images(path, span)
        if stored.payload is not None:
            return stored.images(path, span.first, span.stop, None)
        (piece,) = self._folder.read_ranges([stored.image_range(path, span.first, span.stop)])
        return stored.images(path, span.first, span.stop, piece)

    def _decoded_images(self, path: str, span: Steps) -> list[bytes]:
        # A record of another writer's form, whose images have no places that are known.
        entry = self._entries[span.episode]
        shard = f"{self._folder.location}/{entry.shard}"
        (record,) = self._folder.read_ranges([Range(entry.shard, entry.offset_bytes, entry.size_bytes)])
        payload = unframe(record, shard, entry.offset_bytes)
        name = f"observation/{path}"
        files = decode_episode(payload, {name: self._layout.features[name]}, entry.length, shard)[name]
        assert isinstance(files, list)  # an image by its feature
        return [file for file in files[span.first : span.stop] if isinstance(file, bytes)]

    @property
    def _parts(self) -> tuple[Any, Any]:
        return self._layout.observation, self._layout.action

    def _window(self, stored: StoredEpisode, span: Steps, seen: list[bytes], done: list[bytes]) -> Window:
        here = slice(span.first, span.stop)
        return Window(
            observation=stored.vectors(self._layout.observation, span.first, span.stop, seen),
            action=stored.vectors(self._layout.action, span.first, span.stop, done),
            reward=stored.reward[here],
            is_first=stored.is_first[here],
            is_terminal=stored.is_terminal[here],
            valid=stored.valid[here],
            role=stored.role[here],
            roles=stored.roles,
        )

    def _open(self, wanted: set[int]) -> Mapping[int, StoredEpisode]:
        """Return the checked indices of episodes, reading those that are not in memory."""
        found: dict[int, StoredEpisode] = {}
        with self._lock:
            for episode in wanted & self._cached.keys():
                self._cached.move_to_end(episode)
                if episode in self._whole:
                    self._whole.move_to_end(episode)
                found[episode] = self._cached[episode]
        for group in self._groups(sorted(wanted - found.keys())):
            entries = [self._entries[episode] for episode in group]
            records = self._folder.read_ranges(
                [Range(entry.shard, entry.offset_bytes, entry.size_bytes) for entry in entries]
            )
            for episode, entry, record in zip(group, entries, records, strict=True):
                shard = f"{self._folder.location}/{entry.shard}"
                found[episode] = open_record(record, entry, self._layout, shard, keep=self._keep)
                self._remember(episode, found[episode])
        return found

    def _groups(self, episodes: list[int]) -> Iterator[list[int]]:
        group: list[int] = []
        room_bytes = _READ_BYTES
        for episode in episodes:
            size_bytes = self._entries[episode].size_bytes
            if group and size_bytes > room_bytes:
                yield group
                group, room_bytes = [], _READ_BYTES
            group.append(episode)
            room_bytes -= size_bytes
        if group:
            yield group

    def _remember(self, episode: int, stored: StoredEpisode) -> None:
        with self._lock:
            if episode not in self._cached:
                self._cached[episode] = stored
                self._cached_bytes += stored.size_bytes
                if stored.payload is not None:
                    self._whole[episode] = None
            while self._cached_bytes > self._cache_bytes and self._cached:
                # Payloads go first: an index alone still saves reading a whole record for each of its windows.
                if self._whole:
                    oldest, _ = self._whole.popitem(last=False)
                    self._cached_bytes -= len(self._cached[oldest].payload or b"")
                    self._cached[oldest] = self._cached[oldest].without_payload()
                else:
                    _, dropped = self._cached.popitem(last=False)
                    self._cached_bytes -= dropped.size_bytes


def _take(pieces: Iterator[bytes], count: int) -> list[bytes]:
    return [next(pieces) for _ in range(count)]
