"""A dataset version written straight from episodes: what the report reads, without capture and conversion.

The run-time shape checks of the tests make a conversion take seconds; the converter has tests of its own.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import config

from brain_service.datasets.columns import Columns, Profile, episode_columns
from brain_service.datasets.manifest import EpisodeEntry, LeftOut, Manifest, ShardEntry, write_manifest
from brain_service.datasets.record import encode_episode, episode_metadata
from brain_service.datasets.split import assign_splits
from brain_service.datasets.tfrecord import frame
from brain_service.episodes.reader import Episode


def write_version(
    root: Path,
    episodes: Sequence[Episode],
    *,
    profile: Profile = "oxe",
    val_fraction: float = 0.25,
    quarantined: Sequence[LeftOut] = (),
) -> Path:
    """Write `root/episodes/1.0.0` with one shard a split and return it; it has no statistics and no TFDS files."""
    folder = root / "episodes" / "1.0.0"
    folder.mkdir(parents=True)
    assigned = assign_splits([episode.episode_id for episode in episodes], val_fraction)
    splits: dict[str, list[EpisodeEntry]] = {}
    shards = []
    for split in ("train", "val"):
        file = f"episodes-{split}.tfrecord-00000-of-00001"
        chosen = [episode for episode, its in zip(episodes, assigned, strict=True) if its == split]
        records, offset_bytes = [], 0
        for episode in chosen:
            columns, record = _encode(episode, profile)
            splits.setdefault(split, []).append(
                EpisodeEntry(
                    episode_id=episode.episode_id,
                    length=len(columns["is_last"]),
                    shard=file,
                    offset_bytes=offset_bytes,
                    size_bytes=len(record),
                    sha256=hashlib.sha256(record).hexdigest(),
                    end=episode.end or "open",
                    source=f"{episode.episode_id}.jsonl",
                    roles=dict(Counter(episode.control_role)),
                )
            )
            records.append(record)
            offset_bytes += len(record)
        if chosen:
            (folder / file).write_bytes(b"".join(records))
            digest = hashlib.sha256(b"".join(records)).hexdigest()
            shards.append(ShardEntry(file, split, len(chosen), offset_bytes, digest))
    intervals = [np.median(np.diff(episode.timestamp_ns)) for episode in episodes if len(episode) > 1]
    manifest = Manifest(
        name="episodes",
        version="1.0.0",
        profile=profile,
        spec=episodes[0].spec.to_json(),
        control_period_s=float(np.median(intervals)) / 1e9 if intervals else 0.0,
        splits=splits,
        shards=shards,
        sources=[],
        source_digest="",
        quarantined=list(quarantined),
        skipped_open=[],
    )
    write_manifest(folder, manifest)
    return folder


def _encode(episode: Episode, profile: Profile) -> tuple[Columns, bytes]:
    """Encode without run-time shape checks."""
    config.update("jaxtyping_disable", True)
    try:
        columns = episode_columns(episode, profile)
        return columns, frame(encode_episode(columns, episode_metadata(episode)))
    finally:
        config.update("jaxtyping_disable", False)
