"""Shards of a split, cut from the spool."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from brain_service.datasets.layout import shard_name
from brain_service.datasets.manifest import EpisodeEntry, ShardEntry
from brain_service.datasets.spool import Spooled

__all__ = ["write_shards"]


def write_shards(
    folder: Path, dataset: str, split: str, spool: Path, episodes: Sequence[Spooled], shard_bytes: int
) -> tuple[list[ShardEntry], list[EpisodeEntry]]:
    """Copy a split's records into shards of at most `shard_bytes`, or of one episode where that is larger.

    Returns the shards and the episodes in the order in which TFDS will read them.

    Raises:
        OSError: the medium is full.
    """
    groups = _group(episodes, shard_bytes)
    shards, entries = [], []
    with spool.open("rb") as source:
        for index, group in enumerate(groups):
            name = shard_name(dataset, split, index, len(groups))
            digest, offset_bytes = hashlib.sha256(), 0
            with (folder / name).open("wb") as target:
                for episode in group:
                    source.seek(episode.offset_bytes)
                    record = source.read(episode.size_bytes)
                    target.write(record)
                    digest.update(record)
                    entries.append(_entry(episode, name, offset_bytes))
                    offset_bytes += len(record)
            shards.append(ShardEntry(name, split, len(group), offset_bytes, digest.hexdigest()))
    return shards, entries


def _group(episodes: Sequence[Spooled], shard_bytes: int) -> list[list[Spooled]]:
    groups: list[list[Spooled]] = []
    room_bytes = 0
    for episode in episodes:
        if not groups or episode.size_bytes > room_bytes:
            groups.append([])
            room_bytes = shard_bytes
        groups[-1].append(episode)
        room_bytes -= episode.size_bytes
    return groups


def _entry(episode: Spooled, shard: str, offset_bytes: int) -> EpisodeEntry:
    return EpisodeEntry(
        episode_id=episode.episode_id,
        length=episode.length,
        shard=shard,
        offset_bytes=offset_bytes,
        size_bytes=episode.size_bytes,
        sha256=episode.sha256,
        end=episode.end,
        source=episode.source,
        roles=episode.roles,
    )
