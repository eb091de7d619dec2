"""`manifest.json`: which episode lies where in a dataset's shards, and which capture files it came from.

TFDS refuses unknown keys in its own files, so what it has no place for stands here: the exact feature spec,
byte offsets for random access, hashes, and what was left out with the reason.
"""

from pathlib import Path
from typing import Any

import msgspec

from brain_service.datasets.columns import Profile
from brain_service.datasets.tfrecord import FRAME_BYTES
from brain_service.errors import CorruptDataError
from brain_service.spec import EpisodeSpec
from brain_service.structs import prepared

__all__ = [
    "LAYOUT",
    "MANIFEST_FILE",
    "RECORD_FORMAT",
    "SCHEMA",
    "EpisodeEntry",
    "LeftOut",
    "Manifest",
    "MergedPart",
    "Rival",
    "ShardEntry",
    "SourceEntry",
    "parse_manifest",
    "read_manifest",
    "write_manifest",
]

MANIFEST_FILE = "manifest.json"
SCHEMA = "continuon-brain/dataset/1"
RECORD_FORMAT = 2
"""A change in what is written for the same episode must not reuse records of older versions."""

LAYOUT = 2
"""Of the manifest itself: since 2 it tells sound episodes that others kept out, as rivals."""


class EpisodeEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One episode: `size_bytes` framed bytes at `offset_bytes` of `shard`, with the SHA-256 of those bytes.

    `length` counts stored steps, `roles` the steps a control role. `place` counts the episodes before it in its
    source. `image_kinds` are the kinds of file, `png` or `jpg`, that each image feature holds, by stored name.
    """

    episode_id: str
    length: int
    shard: str
    offset_bytes: int
    size_bytes: int
    sha256: str
    end: str
    source: str
    roles: dict[str, int]
    place: int = 0
    image_kinds: dict[str, list[str]] = {}


class ShardEntry(msgspec.Struct, frozen=True):
    """One shard file with its size and SHA-256."""

    file: str
    split: str
    episodes: int
    size_bytes: int
    sha256: str


class SourceEntry(msgspec.Struct, frozen=True):
    """A capture file that was read, with the SHA-256 of its content."""

    file: str
    sha256: str


class Rival(msgspec.Struct, frozen=True):
    """A sound episode that is left out only because of others: of its id, or with other features.

    It joins when those are gone, so what decides that is remembered. `place` counts the episodes before it in its
    source.
    """

    episode_id: str
    place: int
    spec: dict[str, Any]


class LeftOut(msgspec.Struct, frozen=True, omit_defaults=True):
    """A capture file, or an episode in it, that is not in the dataset, and why."""

    file: str
    reason: str
    rival: Rival | None = None


class MergedPart(msgspec.Struct, frozen=True, order=True):
    """A dataset version that a merged one holds the episodes of; `sha256` is that of its manifest.

    Names of its sources begin with `<robot>/<version>-<the first 8 digits of sha256>/`.
    """

    robot: str
    name: str
    version: str
    sha256: str


@prepared
class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The index of one dataset version. `control_period_s` is the median time between steps; 0 = unknown.

    `sources` are the capture files that the version stands for: those that were read, and earlier ones that are
    gone while their episodes are still here. `record_format` says how an episode is written in a shard.
    `merged` is there where the version was merged of others.
    """

    schema: str = SCHEMA
    name: str
    version: str
    profile: Profile
    spec: dict[str, Any]
    control_period_s: float
    splits: dict[str, list[EpisodeEntry]]
    shards: list[ShardEntry]
    sources: list[SourceEntry]
    source_digest: str
    quarantined: list[LeftOut]
    skipped_open: list[str]
    record_format: int = 2
    layout: int = 1
    merged: list[MergedPart] | msgspec.UnsetType = msgspec.UNSET

    def split_episodes(self) -> dict[str, int]:
        """Return how many episodes each split has."""
        return {split: len(entries) for split, entries in self.splits.items()}

    def split_sizes(self) -> dict[str, tuple[list[int], int]]:
        """Return per split the episodes of each shard, and the bytes of its records without framing."""
        return {
            split: (
                [shard.episodes for shard in self.shards if shard.split == split],
                sum(entry.size_bytes - FRAME_BYTES for entry in entries),
            )
            for split, entries in self.splits.items()
        }

    def episode_spec(self) -> EpisodeSpec:
        """Return the features of a step."""
        return EpisodeSpec.from_json(self.spec)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into a dataset folder that is not published yet."""
    (folder / MANIFEST_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))


def read_manifest(folder: Path) -> Manifest:
    """Read a dataset's manifest.

    Raises:
        CorruptDataError: the file is missing, not what was written, or of another schema.
    """
    path = folder / MANIFEST_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptDataError(f"{path}: {error}; convert the episodes again to rebuild it") from error
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, place: str) -> Manifest:
    """Parse the bytes of a manifest; `place` stands for the file in errors.

    Raises:
        CorruptDataError: they are not what was written, or of another schema.
    """
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptDataError(f"{place}: {error}; convert the episodes again to rebuild it") from error
    if manifest.schema != SCHEMA:
        raise CorruptDataError(
            f"{place}: schema {manifest.schema!r} is not {SCHEMA!r}; convert the episodes again"
        )
    return manifest
