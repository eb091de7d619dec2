"""One pass over a dataset: every episode is read once and given to each measure."""

from collections.abc import Callable, Sequence

from brain_service.datasets.dataset import Dataset
from brain_service.datasets.quality.coverage import measure_coverage
from brain_service.datasets.quality.document import QualityReport, SplitSize
from brain_service.datasets.quality.findings import Finding, by_severity, name_some, verdict
from brain_service.datasets.quality.jumps import JumpFinder
from brain_service.datasets.quality.limits import Limits
from brain_service.datasets.quality.outcomes import OutcomeTaker
from brain_service.datasets.quality.ranges import Ranges, range_findings
from brain_service.datasets.quality.repeats import RepeatFinder
from brain_service.datasets.quality.sample import Sampler
from brain_service.datasets.quality.timing import TimeKeeper
from brain_service.datasets.quality.view import both, view_episode

__all__ = ["measure_quality"]

Progress = Callable[[int, int], None]
"""Called with the steps done and their total."""


def measure_quality(
    dataset: Dataset,
    splits: Sequence[str] = (),
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> QualityReport:
    """Measure some splits of a dataset (default: all) and return the report.

    Memory holds one episode, a sample of at most 64 MB, and a few hundred bytes an episode.

    Raises:
        NotFoundError: the dataset has no such split.
        CorruptDataError: a record fails its checksum; `brain datasets verify` names all that do.
    """
    return _Measures(dataset, tuple(splits) or dataset.splits, limits or Limits()).run(progress or _ignore)


def _ignore(done: int, total: int) -> None:
    """Stand in where nobody watches."""


class _Measures:
    """All measures of one dataset."""

    def __init__(self, dataset: Dataset, splits: tuple[str, ...], limits: Limits) -> None:
        self._dataset, self._limits = dataset, limits
        self._entries = {split: dataset.entries(split) for split in dict.fromkeys(splits)}
        self._sizes = {
            split: SplitSize(len(entries), sum(entry.length for entry in entries))
            for split, entries in self._entries.items()
        }
        self._names = [entry.episode_id for entries in self._entries.values() for entry in entries]
        self._parts = both(dataset.spec)
        observation, action = self._parts
        self._steps = sum(size.steps for size in self._sizes.values())
        self._sampler = Sampler(self._steps, len(self._names), len(observation) + len(action))
        self._ranges = Ranges(observation.names), Ranges(action.names)
        self._time = TimeKeeper(dataset.control_period_s, limits)
        self._repeats = RepeatFinder(observation.slots, limits, len(self._names))
        self._jumps = JumpFinder(action, limits)
        images = [f"observation/{path}" for path in dataset.spec.image_paths]
        self._outcomes = OutcomeTaker(images, limits)

    def run(self, progress: Progress) -> QualityReport:
        """Read every episode once and return the report."""
        done = position = 0
        for split, entries in self._entries.items():
            for index, entry in enumerate(entries):
                columns = self._dataset.read(split, index)
                view = view_episode(position, split, entry, columns, self._parts, self._dataset.profile)
                observed = len(self._parts[0])
                self._ranges[0].add(view, view.observation, view.not_finite[:observed])
                self._ranges[1].add(view, view.action, view.not_finite[observed:])
                for measure in (self._sampler, self._time, self._repeats, self._jumps, self._outcomes):
                    measure.add(view)
                position += 1
                done += len(view)
                progress(done, self._steps)
        return self._report()

    def _report(self) -> QualityReport:
        manifest, limits, sample = self._dataset.manifest, self._limits, self._sampler.result()
        observation = self._ranges[0].result(sample.observation)
        action = self._ranges[1].result(sample.action)
        jumps = self._jumps.result(sample)
        coverage, coverage_findings = measure_coverage(sample, self._parts[0].names, self._names, limits)
        findings = [
            *self._split_findings(),
            *self._outcomes.findings(),
            *range_findings(observation, self._ranges[0], sample.observation, sample.episode, self._names, limits),
            *range_findings(action, self._ranges[1], sample.action, sample.action_episode, self._names, limits),
            *self._time.findings(),
            *self._repeats.findings(),
            *self._jumps.findings(jumps, self._names),
            *coverage_findings,
        ]
        return QualityReport(
            dataset=f"{manifest.name}/{manifest.version}",
            profile=manifest.profile,
            verdict=verdict(findings),
            findings=by_severity(findings),
            limits=limits.to_json(),
            splits=self._sizes,
            size_bytes=sum(shard.size_bytes for shard in manifest.shards if shard.split in self._sizes),
            quarantined=len(manifest.quarantined),
            sampled_steps=len(sample.observation),
            outcomes=self._outcomes.result(),
            timing=self._time.result(),
            observation=observation,
            action=action,
            repeats=self._repeats.result(),
            jumps=jumps,
            coverage=coverage,
        )

    def _split_findings(self) -> list[Finding]:
        found = []
        if not self._dataset.manifest.splits.get("val"):
            found.append(
                Finding(
                    code="no_validation",
                    severity="warn",
                    message="the dataset holds no episode back for validation",
                    fix="record at least two episodes and convert with a val_fraction above 0",
                    value=0,
                    limit=1,
                )
            )
        if left_out := self._dataset.manifest.quarantined:
            files = list(dict.fromkeys(item.file for item in left_out))
            found.append(
                Finding(
                    code="quarantined",
                    severity="warn",
                    message=f"{len(left_out)} episodes were left out: {name_some(files)}, "
                    f"since {left_out[0].reason}",
                    fix="mend or remove these capture files and convert again; all reasons are in manifest.json",
                    episodes=files,
                    value=len(left_out),
                    limit=0,
                )
            )
        return found
