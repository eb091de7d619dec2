"""One dataset version, written into a folder that nobody sees yet, on what an earlier version already holds."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from brain_service.datasets.columns import Profile, step_features
from brain_service.datasets.encoders import encode_here, encode_in_processes
from brain_service.datasets.encoding import EncodedSource
from brain_service.datasets.layout import ImageEncoding, write_layout
from brain_service.datasets.manifest import LAYOUT, EpisodeEntry, LeftOut, Manifest, SourceEntry, write_manifest
from brain_service.datasets.membership import (
    Decision,
    Member,
    decide,
    members_of_manifest,
    members_of_source,
)
from brain_service.datasets.record import decode_episode
from brain_service.datasets.shards import Base, SplitWriter
from brain_service.datasets.sources import Inventory
from brain_service.datasets.split import SPLITS, assign_splits
from brain_service.datasets.statistics import StatisticsBuilder, write_statistics
from brain_service.datasets.tfrecord import read_record
from brain_service.errors import CorruptDataError, InvalidError
from brain_service.spec import EpisodeSpec

__all__ = ["BuildOptions", "Changes", "Progress", "build_version", "compare", "encodings_of", "nothing_to_convert"]

Progress = Callable[[int, int], None]
"""Called with the files done and their total, and again with the same figures while one of them takes long."""

# Below this a process takes longer to start than the files to read.
_WORTH_PROCESSES_BYTES = 32 * 1024**2
_TICK_S = 0.2


@dataclass(frozen=True)
class BuildOptions:
    """What shapes a version besides its sources, and with how many processes it is made."""

    name: str
    profile: Profile
    val_fraction: float
    shard_bytes: int
    jobs: int = 1


@dataclass(frozen=True)
class Changes:
    """The sources against those of the earlier version, by file name. `kept` are gone, their episodes stay."""

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    kept_sources: list[SourceEntry] = field(default_factory=list)


def compare(inventory: Inventory, base: Base | None, drop_missing: bool) -> Changes:
    """Hold the sources against those of an earlier version."""
    before = {} if base is None else {source.file: source for source in base.manifest.sources}
    changes = Changes()
    for source in inventory.sources:
        known = before.pop(source.file, None)
        which = changes.new if known is None else changes.unchanged if known == source else changes.changed
        which.append(source.file)
    if base is not None:
        used = {entry.source for entries in base.manifest.splits.values() for entry in entries}
        for file in sorted(used & before.keys()):
            (changes.dropped if drop_missing else changes.kept).append(file)
        changes.kept_sources.extend(before[file] for file in changes.kept)
    return changes


class _Reading:
    """The episodes of all sources: what the earlier version knows, and what is read as it is needed."""

    def __init__(
        self,
        inventory: Inventory,
        base: Base | None,
        changes: Changes,
        work: Path,
        options: BuildOptions,
        progress: Progress,
    ) -> None:
        self.unreadable: list[LeftOut] = []
        self._members: list[Member] = []
        self._inventory = inventory
        self._work = work
        self._options = options
        self._progress = progress
        self._rounds = 0
        self._told, self._told_s = -1, 0.0
        self._done = 0
        known = set(changes.unchanged)
        if base is not None:
            self._members = members_of_manifest(base.folder, base.manifest, known, set(changes.kept))
            left = [item for item in base.manifest.quarantined if item.rival is None and item.file in known]
            if base.manifest.layout < LAYOUT:
                # It did not tell the unreadable from those that others kept out.
                known -= {item.file for item in left}
            self.unreadable = [item for item in left if item.file in known]
        self._new = sorted({source.file for source in inventory.sources} - known)

    def decide(self, held: EpisodeSpec | None) -> Decision:
        """Read what is new, and what was left out before and now belongs in, until every episode has a record."""
        self._read(self._new)
        while True:
            decision = decide(self._members, held)
            if not decision.unread:
                return decision
            self._read(sorted(decision.unread))

    def tick(self) -> None:
        """Tell the caller what is done, if that is new or it has not heard for a while; it may stop us."""
        now_s = time.monotonic()
        if self._done != self._told or now_s - self._told_s >= _TICK_S:
            self._told, self._told_s = self._done, now_s
            self._progress(self._done, len(self._inventory.sources))

    def _read(self, files: Sequence[str]) -> None:
        total = len(self._inventory.sources)
        again = set(files)
        self._members = [member for member in self._members if member.gone or member.source not in again]
        self.unreadable = [item for item in self.unreadable if item.file not in again]
        self._done = total - len(files)
        for source in self._encode(files):
            self.tick()
            self._members += members_of_source(source)
            if source.problem is not None:
                self.unreadable.append(LeftOut(source.file, source.problem))
            self._done += 1
        self.tick()

    def _encode(self, files: Sequence[str]) -> Iterator[EncodedSource]:
        folder, profile = self._inventory.folder, self._options.profile
        work = self._work / f"records-{self._rounds}"
        work.mkdir()
        self._rounds += 1
        jobs = min(self._options.jobs, len(files))
        if jobs > 1 and self._inventory.size_bytes(files) >= _WORTH_PROCESSES_BYTES:
            return encode_in_processes(folder, files, profile, work, jobs, self.tick)
        return encode_here(folder, files, profile, work)


def build_version(
    inventory: Inventory,
    base: Base | None,
    changes: Changes,
    work: Path,
    options: BuildOptions,
    version: str,
    digest: str,
    progress: Progress,
) -> tuple[Manifest, int]:
    """Write a complete version to `work/<version>`; returns its manifest, and how many shards are those of `base`.

    Episodes that cannot be read or stored, or whose features differ from those of most, are left out with the
    reason.

    Raises:
        InvalidError: no episode is left; says why.
        UnavailableError: a source cannot be read.
        CorruptDataError: `base` holds other bytes than its manifest says.
        OSError: the medium is full.
    """
    reading = _Reading(inventory, base, changes, work, options, progress)
    decision = reading.decide(None if base is None else base.manifest.episode_spec())
    quarantined = sorted(reading.unreadable + decision.left_out, key=lambda item: item.file)
    if decision.spec is None:
        raise nothing_to_convert(inventory, quarantined)
    target = work / version
    target.mkdir()
    writer = SplitWriter(target, options.name, base, options.shard_bytes, reading.tick)
    assigned = assign_splits([member.episode_id for member in decision.members], options.val_fraction)
    splits: dict[str, list[EpisodeEntry]] = {}
    for split in SPLITS:
        chosen = [member for member, its in zip(decision.members, assigned, strict=True) if its == split]
        if chosen:
            splits[split] = writer.write(split, chosen)
    builder = _statistics(target, splits["train"], decision.spec, options.profile, reading.tick)
    manifest = Manifest(
        name=options.name,
        version=version,
        profile=options.profile,
        spec=decision.spec.to_json(),
        control_period_s=builder.control_period_s,
        splits=splits,
        shards=writer.shards,
        sources=sorted(inventory.sources + changes.kept_sources, key=lambda source: source.file),
        source_digest=digest,
        quarantined=quarantined,
        skipped_open=inventory.skipped_open,
        layout=LAYOUT,
    )
    write_statistics(target, builder.result())
    write_layout(target, options.name, version, decision.spec, manifest.split_sizes(), encodings_of(manifest))
    write_manifest(target, manifest)
    return manifest, writer.linked


def encodings_of(manifest: Manifest) -> dict[str, ImageEncoding]:
    """Return how each image feature is encoded: `jpeg` where all its images are, else `png`."""
    entries = [entry for entries in manifest.splits.values() for entry in entries]
    names = (f"observation/{path}" for path in manifest.episode_spec().image_paths)
    return {
        name: "jpeg" if all(entry.image_kinds.get(name) == ["jpg"] for entry in entries) else "png"
        for name in names
    }


def _statistics(
    folder: Path, entries: list[EpisodeEntry], spec: EpisodeSpec, profile: Profile, tick: Callable[[], None]
) -> StatisticsBuilder:
    """Read the training shards back: the figures describe what was written, and a bad write shows here.

    In the order of the sources, not of the shards: the figures are the same to the bit however the version came
    about.

    Raises:
        CorruptDataError: a record fails its checksum.
    """
    builder = StatisticsBuilder(spec, profile)
    # Texts and images have no figures and would take long to decode.
    features = {path: feature for path, feature in step_features(spec).items() if feature.is_numeric}
    name, file = "", None
    try:
        for entry in sorted(entries, key=lambda entry: (entry.source, entry.place)):
            tick()
            if entry.shard != name or file is None:
                if file is not None:
                    file.close()
                name, file = entry.shard, (folder / entry.shard).open("rb")
            file.seek(entry.offset_bytes)
            payload = read_record(file, name)
            if payload is None:
                raise CorruptDataError(f"{name} ends before episode {entry.episode_id}", file=name)
            builder.add(decode_episode(payload, features, entry.length, entry.episode_id))
    finally:
        if file is not None:
            file.close()
    return builder


def nothing_to_convert(inventory: Inventory, quarantined: Sequence[LeftOut]) -> InvalidError:
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
