"""The version as a whole: statistics and manifest of the parts; it appears, and says what was made."""

from collections.abc import Iterable

import msgspec

from brain_service.datasets.manifest import MANIFEST_FILE, Manifest, parse_manifest
from brain_service.datasets.places import open_place
from brain_service.datasets.publishing import publish_version
from brain_service.datasets.statistics import StatisticsPart
from brain_service.datasets.storage import open_folder
from cloud_trainer.fleet.plan import PLAN_FILE, Refusal, Reuse
from cloud_trainer.fleet.run import PARTS, SHARDS, Run
from cloud_trainer.fleet.shard import Done, ShardDone

__all__ = ["OUTCOME_FILE", "FleetReport", "Outcome", "publish"]

OUTCOME_FILE = "outcome.json"
"""In the run's work folder, since what a pipeline's last step returns goes nowhere."""


class FleetReport(msgspec.Struct, frozen=True):
    """What a conversion made, and what it left out and why; `reused` means that nothing was written."""

    dataset_dir: str
    name: str
    version: str
    profile: str
    episodes: int
    steps: int
    splits: dict[str, int]
    shards: int
    quarantined: list[dict[str, str]]
    skipped_open: list[str]
    reused: bool


class Outcome(msgspec.Struct, frozen=True):
    """How a run ended: with a report, or with what there is not to convert."""

    report: FleetReport | None = None
    problem: str | None = None


def publish(done: Iterable[Done], run: Run) -> None:
    """Complete the version, make it visible, and leave the outcome in the run's work folder.

    On a bucket the manifest is the last file to appear.

    Raises:
        UnavailableError: it cannot be written now.
    """
    items = list(done)
    work = open_place(run.work)
    special = next((item for item in items if not isinstance(item, ShardDone)), None)
    if isinstance(special, Refusal):
        outcome = Outcome(problem=special.detail)
    elif isinstance(special, Reuse):
        place = open_folder(run.dataset).child(special.version)
        outcome = Outcome(_report(parse_manifest(place.read(MANIFEST_FILE), place.location), run, reused=True))
    else:
        shards = sorted((item for item in items if isinstance(item, ShardDone)), key=lambda item: item.index)
        outcome = Outcome(_report(_publish(shards, run), run, reused=False))
    work.write(OUTCOME_FILE, msgspec.json.encode(outcome))
    work.child(PARTS).remove()
    work.child(SHARDS).remove()


def _report(manifest: Manifest, run: Run, *, reused: bool) -> FleetReport:
    entries = [entry for entries in manifest.splits.values() for entry in entries]
    return FleetReport(
        dataset_dir=f"{run.dataset}/{manifest.version}",
        name=manifest.name,
        version=manifest.version,
        profile=manifest.profile,
        episodes=len(entries),
        steps=sum(entry.length for entry in entries),
        splits=manifest.split_episodes(),
        shards=len(manifest.shards),
        quarantined=[{"file": item.file, "reason": item.reason} for item in manifest.quarantined],
        skipped_open=manifest.skipped_open,
        reused=reused,
    )


def _publish(shards: list[ShardDone], run: Run) -> Manifest:
    draft = parse_manifest(open_folder(run.work).read(PLAN_FILE), PLAN_FILE)
    whole = StatisticsPart.joined(shard.part for shard in shards if shard.part is not None)
    draft = msgspec.structs.replace(
        draft,
        shards=[shard.entry for shard in shards],
        control_period_s=whole.control_period_s,
    )
    return publish_version(run.shards, open_place(run.dataset), draft, whole.statistics())
