"""Encoded episodes on disk, in reading order, until it is known which split and shard each belongs to.

The split needs all episode ids and the spec needs all episodes, but memory must not grow with the input: the
records wait in one file and the shards are then cut from it.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from brain_service.datasets.columns import Columns, Profile, episode_columns
from brain_service.datasets.record import encode_episode, episode_metadata
from brain_service.datasets.tfrecord import FRAME_BYTES, frame
from brain_service.episodes.reader import Episode
from brain_service.errors import InvalidError
from brain_service.image_header import image_kind
from brain_service.spec import EpisodeSpec

__all__ = ["Spool", "Spooled"]


@dataclass(frozen=True)
class Spooled:
    """One framed record in the spool: `size_bytes` at `offset_bytes`, `length` stored steps.

    `image_kinds` are the kinds of file, `png` or `jpg`, that each image feature holds, by stored name.
    """

    episode_id: str
    source: str
    spec: EpisodeSpec
    length: int
    offset_bytes: int
    size_bytes: int
    sha256: str
    end: str
    roles: dict[str, int]
    image_kinds: dict[str, set[str]]

    @property
    def payload_bytes(self) -> int:
        """Size of the serialised example without its framing: what TFDS calls the split's bytes."""
        return self.size_bytes - FRAME_BYTES


class Spool:
    """Writes encoded episodes to one file. A context manager; the file outlives it until its folder is removed."""

    def __init__(self, path: Path, profile: Profile) -> None:
        self.path = path
        self.episodes: list[Spooled] = []
        self._profile = profile
        self._ids: set[str] = set()
        self._offset_bytes = 0
        self._file = path.open("wb")

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, episode: Episode, source: str) -> None:
        """Encode and append one episode.

        Raises:
            InvalidError: it has no steps, its id is already there, or its features cannot be stored.
            OSError: the medium is full.
        """
        if len(episode) == 0:
            raise InvalidError("the episode has no steps")
        if episode.episode_id in self._ids:
            raise InvalidError(f"episode_id {episode.episode_id!r} was already read from another file")
        columns = episode_columns(episode, self._profile)
        record = frame(encode_episode(columns, episode_metadata(episode)))
        self._file.write(record)
        self._ids.add(episode.episode_id)
        spooled = Spooled(
            episode_id=episode.episode_id,
            source=source,
            spec=episode.spec,
            length=len(columns["control_role"]),
            offset_bytes=self._offset_bytes,
            size_bytes=len(record),
            sha256=hashlib.sha256(record).hexdigest(),
            end=episode.end or "open",
            roles=dict(sorted(Counter(episode.control_role).items())),
            image_kinds=_image_kinds(columns, episode.spec),
        )
        self._offset_bytes += len(record)
        self.episodes.append(spooled)


def _image_kinds(columns: Columns, spec: EpisodeSpec) -> dict[str, set[str]]:
    names = [f"observation/{path}" for path in spec.image_paths]
    return {
        name: {image_kind(image) or "" for image in columns[name] if isinstance(image, bytes)} for name in names
    }
