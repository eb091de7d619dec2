"""Which episodes make up the version and what each shard holds: decided in one place, from the index alone."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from brain_service.datasets.build import nothing_to_convert
from brain_service.datasets.convert import version_digest
from brain_service.datasets.layout import shard_name
from brain_service.datasets.manifest import LAYOUT, EpisodeEntry, LeftOut, Manifest
from brain_service.datasets.membership import Decision, Member, decide, members_of_source
from brain_service.datasets.places import open_place
from brain_service.datasets.shards import entry_of, group_by_size
from brain_service.datasets.sources import Inventory
from brain_service.datasets.split import SPLITS, assign_splits
from brain_service.datasets.statistics import SamplePlace, sample_stride
from brain_service.datasets.storage import open_folder
from brain_service.datasets.versions import newest_version
from cloud_trainer.fleet.encode import Found
from cloud_trainer.fleet.run import Run

__all__ = ["PLAN_FILE", "Refusal", "Reuse", "ShardTask", "Task", "make_plan"]

PLAN_FILE = "plan.json"
"""The manifest to be, in the run's work folder, when shards and figures are still missing in it."""


@dataclass(frozen=True)
class ShardTask:
    """One shard to write: where its records are in the parts, and what the index will say of them.

    `sample` is there for shards of the training split, which is what figures are of.
    """

    index: int
    file: str
    split: str
    entries: list[EpisodeEntry]
    origins: list[tuple[str, int]]
    """Of each entry the part and the byte in it."""
    spec: dict[str, object]
    sample: SamplePlace | None


@dataclass(frozen=True)
class Reuse:
    """The newest version was made of the same input in the same way."""

    version: str


@dataclass(frozen=True)
class Refusal:
    """There is nothing to convert, and why."""

    detail: str


Task = ShardTask | Reuse | Refusal


def make_plan(found: Iterable[bytes], run: Run) -> Iterator[Task]:
    """Yield what is to be done about what was found, in any order; leaves the manifest to be in `PLAN_FILE`.

    Raises:
        UnavailableError: the work folder cannot be written, or the dataset's not be listed.
    """
    sources, encoded, skipped = _gather(found)
    digest = version_digest(sources, run.options)
    newest = newest_version(open_folder(run.dataset), run.profile)
    if newest is not None and newest.source_digest == digest:
        yield Reuse(newest.version)
        return
    members = [member for source in encoded for member in members_of_source(source)]
    decision = decide(members, None)
    unreadable = [LeftOut(source.file, source.problem) for source in encoded if source.problem is not None]
    quarantined = sorted(unreadable + decision.left_out, key=lambda item: item.file)
    if decision.spec is None:
        inventory = Inventory(Path(run.dataset), sources, skipped)
        detail = nothing_to_convert(inventory, quarantined).detail
        yield Refusal(detail.replace(f" in {Path(run.dataset)}", " in the given folders"))
        return
    tasks = list(_tasks(decision, run))
    manifest = Manifest(
        name=run.name,
        version="",
        profile=run.profile,
        spec=decision.spec.to_json(),
        control_period_s=0.0,
        splits={
            split: [entry for task in tasks if task.split == split for entry in task.entries]
            for split in SPLITS
            if any(task.split == split for task in tasks)
        },
        shards=[],
        sources=sources,
        source_digest=digest,
        quarantined=quarantined,
        skipped_open=skipped,
        layout=LAYOUT,
    )
    open_place(run.work).write(PLAN_FILE, msgspec.json.encode(manifest))
    yield from tasks


def _gather(found: Iterable[bytes]) -> tuple[list, list, list]:  # type: ignore[type-arg]
    parsed = [msgspec.json.decode(item, type=Found) for item in found]
    sources = sorted((source for item in parsed for source in item.sources), key=lambda source: source.file)
    encoded = sorted((source for item in parsed for source in item.encoded), key=lambda source: source.file)
    return sources, encoded, sorted(name for item in parsed for name in item.skipped_open)


def _tasks(decision: Decision, run: Run) -> Iterator[ShardTask]:
    assigned = assign_splits([member.episode_id for member in decision.members], run.val_fraction)
    assert decision.spec is not None
    spec, index = decision.spec.to_json(), 0
    for split in SPLITS:
        chosen = [member for member, its in zip(decision.members, assigned, strict=True) if its == split]
        lengths = [_length(member) for member in chosen]
        stride = sample_stride(lengths)
        steps = transitions = 0
        for number, group in enumerate(group_by_size(chosen, run.shard_bytes)):
            file = shard_name(run.name, split, number)
            sample = SamplePlace(stride, steps, transitions) if split == "train" else None
            yield _task(index, file, split, group, spec, sample)
            index += 1
            steps += sum(map(_length, group))
            # In `rlds` an episode's last step has no transition.
            transitions += sum(_length(member) - (run.profile == "rlds") for member in group)


def _task(
    index: int,
    file: str,
    split: str,
    members: Sequence[Member],
    spec: dict[str, object],
    sample: SamplePlace | None,
) -> ShardTask:
    entries: list[EpisodeEntry] = []
    origins: list[tuple[str, int]] = []
    offset_bytes = 0
    for member in members:
        assert member.record is not None
        entries.append(entry_of(member, file, offset_bytes))
        origins.append((member.record.file.name, member.record.offset_bytes))
        offset_bytes += member.record.size_bytes
    return ShardTask(index, file, split, entries, origins, spec, sample)


def _length(member: Member) -> int:
    assert member.record is not None  # everything was read
    return member.record.length
