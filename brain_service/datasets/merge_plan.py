"""Which episodes a merged dataset holds, decided from the manifests: the same whatever the order of the parts.

Of an id that several parts have, the longest episode stays, and of equal length the one with the greatest hash.
What any part holds out stays held out. Both choices are joins of a semilattice, so parts may be merged in any
order, in any grouping, and more than once.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from brain_service.datasets.dataset import Dataset
from brain_service.datasets.manifest import (
    EpisodeEntry,
    LeftOut,
    Manifest,
    MergedPart,
    Rival,
    ShardEntry,
    SourceEntry,
)
from brain_service.datasets.membership import spec_difference
from brain_service.datasets.split import SPLITS
from brain_service.errors import InvalidError

__all__ = ["Kept", "MergePlan", "Part", "manifest_sha256", "plan_merge"]


@dataclass(frozen=True, eq=False)
class Part:
    """One of the datasets: `sha256` is its manifest's, `robot` what stands before the names of its sources."""

    dataset: Dataset
    sha256: str
    robot: str

    @property
    def manifest(self) -> Manifest:
        """Its index."""
        return self.dataset.manifest

    @property
    def leaves(self) -> list[MergedPart]:
        """The datasets that it holds: itself, or those that it was merged of."""
        if isinstance(self.manifest.merged, list):
            return self.manifest.merged
        return [MergedPart(self.robot, self.manifest.name, self.manifest.version, self.sha256)]

    def source(self, file: str) -> str:
        """Return the name of one of its capture files among those of all parts."""
        if isinstance(self.manifest.merged, list):
            return file
        return f"{self.robot}/{self.manifest.version}-{self.sha256[:8]}/{file}"


@dataclass(frozen=True)
class Kept:
    """An episode that stays: where it lies in its part, and the split that it goes to."""

    part: Part
    entry: EpisodeEntry
    split: str


@dataclass
class MergePlan:
    """What a merged dataset is made of. `whole` are shards that stay as they are, `loose` episodes of others."""

    parts: list[Part]
    whole: dict[str, list[tuple[Part, ShardEntry]]] = field(default_factory=dict)
    loose: dict[str, list[Kept]] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)
    duplicates: int = 0
    rivals: list[LeftOut] = field(default_factory=list)

    @property
    def sources(self) -> list[SourceEntry]:
        """The capture files of all parts, each once."""
        found = {
            part.source(source.file): msgspec.structs.replace(source, file=part.source(source.file))
            for part in self.parts
            for source in part.manifest.sources
        }
        return [found[file] for file in sorted(found)]

    @property
    def left_out(self) -> list[LeftOut]:
        """What the parts left out, and what other parts kept out."""
        theirs = [
            msgspec.structs.replace(item, file=part.source(item.file))
            for part in self.parts
            for item in part.manifest.quarantined
        ]
        found = {(item.file, item.reason): item for item in theirs + self.rivals}
        return [found[key] for key in sorted(found)]

    @property
    def skipped_open(self) -> list[str]:
        """The episodes that were open when a part was converted."""
        return sorted({part.source(file) for part in self.parts for file in part.manifest.skipped_open})

    @property
    def leaves(self) -> list[MergedPart]:
        """The datasets that no merge made, each once."""
        return sorted({leaf for part in self.parts for leaf in part.leaves})

    def training(self, part: Part) -> list[EpisodeEntry]:
        """Return the episodes of a part that go to the training split."""
        return [kept.entry for kept in self.kept.values() if kept.part is part and kept.split == "train"]


def plan_merge(parts: Sequence[Part]) -> MergePlan:
    """Decide about every episode and every shard.

    Raises:
        InvalidError: the parts do not go together, and in what; or nothing is left to train on.
    """
    plan = MergePlan(sorted({part.sha256: part for part in parts}.values(), key=lambda part: part.sha256))
    _require_alike(plan.parts)
    found = [
        (part, entry, split)
        for part in plan.parts
        for split, entries in part.manifest.splits.items()
        for entry in entries
    ]
    held_out = {entry.episode_id for _, entry, split in found if split != "train"}
    for part, entry, _ in found:
        best = plan.kept.get(entry.episode_id)
        if best is None or _rank(entry) > _rank(best.entry):
            split = "val" if entry.episode_id in held_out else "train"
            plan.kept[entry.episode_id] = Kept(part, entry, split)
    for part, entry, _ in found:
        _note(plan, part, entry)
    # The parts' own order is that of their hashes, and so of the moments when they were made.
    plan.rivals.sort(key=lambda left: (left.rival.episode_id if left.rival else "", left.file))
    if not any(kept.split == "train" for kept in plan.kept.values()):
        raise InvalidError(
            "every training episode of one dataset is held out by another, so that none is left to train on; "
            "convert them with the same --val-fraction"
        )
    _sort_shards(plan)
    return plan


def _rank(entry: EpisodeEntry) -> tuple[int, str]:
    return entry.length, entry.sha256


def _require_alike(parts: Sequence[Part]) -> None:
    first, *others = parts
    for part in others:
        ours, theirs = first.manifest, part.manifest
        places = f"{first.dataset.location} and {part.dataset.location}"
        if difference := spec_difference(theirs.episode_spec(), ours.episode_spec()):
            raise InvalidError(
                f"{places} do not have the same features: {difference} (the second beside the first); merge "
                "datasets of one kind of robot",
                field=difference.split(" ", 1)[0],
            )
        if ours.profile != theirs.profile:
            raise InvalidError(
                f"{places} have the profiles {ours.profile} and {theirs.profile}; convert one of them again",
                field="profile",
            )
        if ours.record_format != theirs.record_format:
            raise InvalidError(
                f"{places} have the record formats {ours.record_format} and {theirs.record_format}; convert the "
                "older one again",
                field="record_format",
            )


def _note(plan: MergePlan, part: Part, entry: EpisodeEntry) -> None:
    """Count an episode that does not stay, or tell why it does not."""
    kept = plan.kept[entry.episode_id]
    if kept.entry is entry:
        return
    if kept.entry.sha256 == entry.sha256:
        plan.duplicates += 1
        return
    reason = (
        f"episode_id {entry.episode_id!r} is another episode in {kept.part.source(kept.entry.source)}, of "
        f"{kept.entry.length} steps; this one has {entry.length}"
    )
    rival = Rival(entry.episode_id, entry.place, part.manifest.spec)
    plan.rivals.append(LeftOut(part.source(entry.source), reason, rival))


def _sort_shards(plan: MergePlan) -> None:
    """Tell the shards that stay as they are from those of which some episodes go elsewhere."""
    for split in SPLITS:
        for part in plan.parts:
            by_shard: dict[str, list[Kept]] = {}
            for entries in part.manifest.splits.values():
                for entry in entries:
                    kept = plan.kept[entry.episode_id]
                    if kept.entry is entry and kept.split == split:
                        by_shard.setdefault(entry.shard, []).append(kept)
            for shard in part.manifest.shards:
                chosen = by_shard.get(shard.file, [])
                if shard.split == split and len(chosen) == shard.episodes:
                    plan.whole.setdefault(split, []).append((part, shard))
                elif chosen:
                    plan.loose.setdefault(split, []).extend(chosen)


def manifest_sha256(data: bytes) -> str:
    """Return what tells a dataset version from others: the hash of its manifest's bytes."""
    return hashlib.sha256(data).hexdigest()
