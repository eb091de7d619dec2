"""Several robots' datasets become one without a record being written anew: their shards get other names.

On disk a shard is linked, on a bucket it is copied inside the service. Only a shard of which some episodes are in
another part as well is cut: what stays of it goes, byte for byte, to a shard at the end.
"""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from brain_service.datasets.build import BuildOptions
from brain_service.datasets.convert import SHARD_BYTES, check_options
from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.datasets.layout import shard_name
from brain_service.datasets.manifest import LAYOUT, MANIFEST_FILE, EpisodeEntry, Manifest, ShardEntry
from brain_service.datasets.merge_plan import Kept, MergePlan, Part, manifest_sha256, plan_merge
from brain_service.datasets.merge_statistics import merge_statistics
from brain_service.datasets.places import LocalPlace, Place, open_place
from brain_service.datasets.publishing import publish_version
from brain_service.datasets.sources import sources_digest
from brain_service.datasets.split import SPLITS
from brain_service.datasets.storage import LocalFolder, Range
from brain_service.datasets.versions import exclusive_work, newest_version
from brain_service.errors import CorruptDataError, InvalidError, UnavailableError

__all__ = ["MergeReport", "merge_datasets"]

_FORMAT = 1


@dataclass(frozen=True)
class MergeReport:
    """What a merge made. `whole_shards` of the `shards` are those of a part under another name.

    `duplicates` counts episodes that several parts had alike, `rivals` tells those that had the id of another.
    """

    dataset_dir: str
    name: str
    version: str
    episodes: int
    steps: int
    splits: dict[str, int]
    shards: int
    whole_shards: int
    duplicates: int
    rivals: list[dict[str, str]]
    parts: list[dict[str, str]]
    reused: bool

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-ready mapping."""
        return asdict(self)


def merge_datasets(inputs: Sequence[str | Path], output_dir: str | Path, *, name: str = "fleet") -> MergeReport:
    """Merge dataset versions into the next version of `<output_dir>/<name>`.

    An input is a place that `open_dataset` takes, with `<robot>=` before it or not: without, its robot is the one
    that its first episode names, else the dataset's name. Places are local or `gs://`.

    Raises:
        InvalidError: fewer than one input, datasets that do not go together, or a bad name.
        NotFoundError: an input is no dataset.
        CorruptDataError: a part is not what its manifest says.
        UnavailableError: the output cannot be written, or a bucket not be reached; nothing was published.
    """
    check_options(BuildOptions(name, "oxe", 0.0, SHARD_BYTES))
    if not inputs:
        raise InvalidError("no dataset to merge; give the version folders of some", field="inputs")
    plan = plan_merge([_open(place) for place in inputs])
    dataset = open_place(output_dir).child(name)
    if not isinstance(dataset, LocalPlace):
        work = dataset.child(".work").child(uuid.uuid4().hex)
        try:
            return _merge(plan, dataset, work, name)
        finally:
            work.remove()
    try:
        with exclusive_work(dataset.path) as folder:
            return _merge(plan, dataset, LocalPlace(folder / "merge"), name)
    except OSError as error:
        raise UnavailableError(
            f"cannot merge to {dataset.path}: {error.strerror or error}; check permissions and free space"
        ) from error


def _open(place: str | Path) -> Part:
    text = str(place)
    label, _, rest = text.partition("=")
    robot, path = (label, rest) if rest and "/" not in label else ("", text)
    dataset = open_dataset(path)
    sha256 = manifest_sha256(dataset.folder.read(MANIFEST_FILE))
    return Part(dataset, sha256, robot or _robot(dataset))


def _robot(dataset: Dataset) -> str:
    found = dataset.metadata(dataset.splits[0], 0).get("robot_id") if dataset.splits else None
    return str(found or dataset.manifest.name)


def _merge(plan: MergePlan, dataset: Place, staged: Place, name: str) -> MergeReport:
    leaves = [msgspec.to_builtins(leaf) for leaf in plan.leaves]
    first = plan.parts[0].manifest
    digest = sources_digest(plan.sources, {"format": _FORMAT, "merged": leaves, "profile": first.profile})
    newest = newest_version(dataset.folder, first.profile)
    if newest is not None and newest.source_digest == digest:
        return _report(plan, newest, dataset, reused=True)
    shards, splits = _write_shards(plan, staged, name)
    statistics, period_s = merge_statistics(plan)
    draft = Manifest(
        name=name,
        version="",
        profile=first.profile,
        spec=first.spec,
        control_period_s=period_s,
        splits=splits,
        shards=shards,
        sources=plan.sources,
        source_digest=digest,
        quarantined=plan.left_out,
        skipped_open=plan.skipped_open,
        record_format=first.record_format,
        layout=LAYOUT,
        merged=plan.leaves,
    )
    return _report(plan, publish_version(staged, dataset, draft, statistics), dataset, reused=False)


def _report(plan: MergePlan, manifest: Manifest, dataset: Place, *, reused: bool) -> MergeReport:
    entries = [entry for entries in manifest.splits.values() for entry in entries]
    return MergeReport(
        dataset_dir=dataset.child(manifest.version).folder.location,
        name=manifest.name,
        version=manifest.version,
        episodes=len(entries),
        steps=sum(entry.length for entry in entries),
        splits=manifest.split_episodes(),
        shards=len(manifest.shards),
        whole_shards=sum(map(len, plan.whole.values())),
        duplicates=plan.duplicates,
        rivals=[{"file": item.file, "reason": item.reason} for item in plan.rivals],
        parts=[msgspec.to_builtins(leaf) for leaf in plan.leaves],
        reused=reused,
    )


def _write_shards(
    plan: MergePlan, staged: Place, name: str
) -> tuple[list[ShardEntry], dict[str, list[EpisodeEntry]]]:
    shards: list[ShardEntry] = []
    splits: dict[str, list[EpisodeEntry]] = {}
    for split in SPLITS:
        entries: list[EpisodeEntry] = []
        index = 0
        for part, shard in plan.whole.get(split, []):
            file = shard_name(name, split, index)
            index += 1
            _require_sound(part, shard)
            staged.take(part.dataset.folder, shard.file, file)
            shards.append(msgspec.structs.replace(shard, file=file))
            inside = [entry for entry in part.manifest.splits[split] if entry.shard == shard.file]
            inside.sort(key=lambda entry: entry.offset_bytes)
            entries += [_renamed(part, entry, file, entry.offset_bytes) for entry in inside]
        for group in _by_size(plan.loose.get(split, [])):
            file = shard_name(name, split, index)
            index += 1
            made, its = _cut(group, staged, file, split)
            shards.append(made)
            entries += its
        if entries:
            splits[split] = entries
    return shards, splits


def _renamed(part: Part, entry: EpisodeEntry, file: str, offset_bytes: int) -> EpisodeEntry:
    source = part.source(entry.source)
    return msgspec.structs.replace(entry, shard=file, offset_bytes=offset_bytes, source=source)


def _require_sound(part: Part, shard: ShardEntry) -> None:
    """Hold a shard on disk against its hash: under a new manifest its damage would be harder to trace."""
    folder = part.dataset.folder
    if not isinstance(folder, LocalFolder):
        return  # reading it all is what a copy inside the service saves; sizes were checked
    with (folder.path / shard.file).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != shard.sha256:
        raise CorruptDataError(
            f"{folder.path / shard.file} has SHA-256 {digest}, its manifest says {shard.sha256}; restore it "
            "or convert the episodes again",
            file=shard.file,
        )


def _by_size(loose: Sequence[Kept]) -> list[list[Kept]]:
    groups: list[list[Kept]] = []
    room_bytes = 0
    for kept in loose:
        if not groups or kept.entry.size_bytes > room_bytes:
            groups.append([])
            room_bytes = SHARD_BYTES
        groups[-1].append(kept)
        room_bytes -= kept.entry.size_bytes
    return groups


def _cut(group: Sequence[Kept], staged: Place, file: str, split: str) -> tuple[ShardEntry, list[EpisodeEntry]]:
    """Write a shard of episodes that lay in shards with others; each is held against its hash."""
    entries: list[EpisodeEntry] = []
    digest, offset_bytes = hashlib.sha256(), 0
    with staged.stream(file) as written:
        for kept in group:
            folder, entry = kept.part.dataset.folder, kept.entry
            (record,) = folder.read_ranges([Range(entry.shard, entry.offset_bytes, entry.size_bytes)])
            if hashlib.sha256(record).hexdigest() != entry.sha256:
                raise CorruptDataError(
                    f"{folder.location}/{entry.shard}: episode {entry.episode_id} at byte {entry.offset_bytes} is "
                    "not what was written there",
                    file=entry.shard,
                )
            written.write(record)
            digest.update(record)
            entries.append(_renamed(kept.part, entry, file, offset_bytes))
            offset_bytes += len(record)
    return ShardEntry(file, split, len(group), offset_bytes, digest.hexdigest()), entries
