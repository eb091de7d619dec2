"""One dataset version, written from its sources into a folder that nobody sees yet."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson

from brain_service.datasets.columns import Profile, step_features
from brain_service.datasets.layout import ImageEncoding, write_layout
from brain_service.datasets.manifest import EpisodeEntry, LeftOut, Manifest, ShardEntry, write_manifest
from brain_service.datasets.record import decode_episode
from brain_service.datasets.shards import write_shards
from brain_service.datasets.sources import Inventory
from brain_service.datasets.split import SPLITS, assign_splits
from brain_service.datasets.spool import Spool, Spooled
from brain_service.datasets.statistics import StatisticsBuilder, write_statistics
from brain_service.datasets.tfrecord import read_records
from brain_service.episodes.reader import read_episodes
from brain_service.errors import BrainError, InvalidError, UnavailableError
from brain_service.spec import EpisodeSpec

__all__ = ["BuildOptions", "Progress", "build_version", "nothing_to_convert"]

Progress = Callable[[int, int], None]
"""Called with the files done and their total."""


@dataclass(frozen=True)
class BuildOptions:
    """What shapes a version besides its sources."""

    name: str
    profile: Profile
    val_fraction: float
    shard_bytes: int


def build_version(
    inventory: Inventory, work: Path, options: BuildOptions, version: str, digest: str, progress: Progress
) -> Manifest:
    """Write a complete version to `work/<version>` and return its manifest.

    Episodes that cannot be read or stored, or whose features differ from those of most, are left out with the
    reason.

    Raises:
        InvalidError: no episode is left; says why.
        UnavailableError: a source cannot be read.
        OSError: the medium is full.
    """
    spool, quarantined = _read_all(inventory, work / "spool", options.profile, progress)
    episodes, spec, others = _majority(spool.episodes)
    quarantined += others
    if spec is None:
        raise nothing_to_convert(inventory, quarantined)
    target = work / version
    target.mkdir()
    shards: list[ShardEntry] = []
    splits: dict[str, list[EpisodeEntry]] = {}
    sizes: dict[str, tuple[list[int], int]] = {}
    assigned = assign_splits([episode.episode_id for episode in episodes], options.val_fraction)
    for split in SPLITS:
        chosen = [episode for episode, its in zip(episodes, assigned, strict=True) if its == split]
        if not chosen:
            continue
        made, entries = write_shards(target, options.name, split, spool.path, chosen, options.shard_bytes)
        shards += made
        splits[split] = entries
        payload_bytes = sum(episode.payload_bytes for episode in chosen)
        sizes[split] = ([shard.episodes for shard in made], payload_bytes)
    builder = _statistics(target, shards, splits["train"], spec, options.profile)
    manifest = Manifest(
        name=options.name,
        version=version,
        profile=options.profile,
        spec=spec.to_json(),
        control_period_s=builder.control_period_s,
        splits=splits,
        shards=shards,
        sources=inventory.sources,
        source_digest=digest,
        quarantined=quarantined,
        skipped_open=inventory.skipped_open,
    )
    write_statistics(target, builder.result())
    write_layout(target, options.name, version, spec, sizes, _encodings(episodes))
    write_manifest(target, manifest)
    return manifest


def _read_all(
    inventory: Inventory, path: Path, profile: Profile, progress: Progress
) -> tuple[Spool, list[LeftOut]]:
    """Read and encode every episode of every file; a file that fails is left out and the others go on."""
    quarantined: list[LeftOut] = []
    total = len(inventory.sources)
    with Spool(path, profile) as spool:
        for done, source in enumerate(inventory.sources):
            progress(done, total)
            try:
                for episode in read_episodes(inventory.folder / source.file):
                    step_features(episode.spec)
                    spool.add(episode, source.file)
            except UnavailableError:
                # The medium failed, not the episode: left out now, it would never be looked at again.
                raise
            except BrainError as error:
                quarantined.append(LeftOut(source.file, error.detail))
    progress(total, total)
    return spool, quarantined


def _majority(episodes: list[Spooled]) -> tuple[list[Spooled], EpisodeSpec | None, list[LeftOut]]:
    """Return the episodes of the most frequent spec (the earliest of equals), that spec, and the others."""
    keys = [orjson.dumps(episode.spec.to_json(), option=orjson.OPT_SORT_KEYS) for episode in episodes]
    if not keys:
        return [], None, []
    chosen = Counter(keys).most_common(1)[0][0]
    spec = episodes[keys.index(chosen)].spec
    others = [
        LeftOut(
            episode.source,
            f"its features differ from those of most episodes: {_difference(episode.spec, spec)}; "
            "convert it by itself under another dataset name",
        )
        for episode, key in zip(episodes, keys, strict=True)
        if key != chosen
    ]
    kept = [episode for episode, key in zip(episodes, keys, strict=True) if key == chosen]
    return kept, spec, others


def _encodings(episodes: list[Spooled]) -> dict[str, ImageEncoding]:
    """Return how each image feature is encoded: `jpeg` where all its images are, else `png`."""
    return {
        name: "jpeg" if all(episode.image_kinds[name] == {"jpg"} for episode in episodes) else "png"
        for name in episodes[0].image_kinds
    }


def _difference(found: EpisodeSpec, expected: EpisodeSpec) -> str:
    parts = []
    for part in ("observation", "action"):
        mine, most = getattr(found, part), getattr(expected, part)
        for path in sorted(mine.keys() | most.keys()):
            if mine.get(path) != most.get(path):
                texts = [
                    f"{feature.dtype} {list(feature.shape)}" if feature else "nothing"
                    for feature in (mine.get(path), most.get(path))
                ]
                parts.append(f"{part}/{path} is {texts[0]}, not {texts[1]}")
    return ", ".join(parts)


def _statistics(
    folder: Path, shards: list[ShardEntry], entries: list[EpisodeEntry], spec: EpisodeSpec, profile: Profile
) -> StatisticsBuilder:
    """Read the training shards back: the figures describe what was written, and a bad write shows here."""
    builder = StatisticsBuilder(spec, profile)
    features = step_features(spec)
    lengths = iter(entries)
    for shard in shards:
        if shard.split != "train":
            continue
        for payload in read_records(folder / shard.file):
            entry = next(lengths)
            builder.add(decode_episode(payload, features, entry.length, entry.episode_id))
    return builder


def nothing_to_convert(inventory: Inventory, quarantined: list[LeftOut]) -> InvalidError:
    """Return the error that says why there is nothing to convert and what to do."""
    reasons = [f"{item.file}: {item.reason}" for item in quarantined[:3]]
    reasons += [f"{len(quarantined) - 3} more"] * (len(quarantined) > 3)
    reasons += [f"{len(inventory.skipped_open)} still open: end them first"] * bool(inventory.skipped_open)
    return InvalidError(
        f"no episode to convert in {inventory.folder}; "
        + ("; ".join(reasons) or "record one with EpisodeLogger or POST /episodes, end it, and convert again"),
        quarantined=[{"file": item.file, "reason": item.reason} for item in quarantined],
        skipped_open=inventory.skipped_open,
    )
