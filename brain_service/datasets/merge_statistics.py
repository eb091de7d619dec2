"""Figures of a merged training split, from the figures of its parts.

Mean, spread and range are joined exactly. Quantiles cannot be: they are counted anew, of all training episodes
where these have no more steps than a converter's sample, else of those with the smallest hashes of their ids: a
random choice that depends on nothing but which episodes there are.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from brain_service.datasets.columns import step_features
from brain_service.datasets.dataset import Dataset
from brain_service.datasets.merge_plan import Kept, MergePlan, Part
from brain_service.datasets.moments import Moments
from brain_service.datasets.record import decode_episode
from brain_service.datasets.statistics import SAMPLE_STEPS, Statistics, StatisticsBuilder, StatisticsPart
from brain_service.datasets.storage import Range
from brain_service.datasets.tfrecord import unframe

__all__ = ["merge_statistics"]

_READ_BYTES = 64 * 1024**2


def merge_statistics(plan: MergePlan, sample_steps: int = SAMPLE_STEPS) -> tuple[Statistics, float]:
    """Return the figures of the training split, and the median time between steps in seconds.

    Episodes are read for the sample; those of a part that lost some to others, all of them; and all of all parts
    where these differ in the time between steps, which has a median only of what is looked at.

    Raises:
        CorruptDataError: what has to be read of a part fails its checksum, or its figures are gone.
        UnavailableError: a bucket cannot be reached.
    """
    counted = [found for part in plan.parts if (found := _part(plan, part)) is not None]
    joined = StatisticsPart.joined(counted)
    training = sorted(
        (kept for kept in plan.kept.values() if kept.split == "train"),
        key=lambda kept: hashlib.sha256(kept.entry.episode_id.encode()).digest(),
    )
    chosen = list(_bottom(training, sample_steps))
    sample = _count(chosen, plan.parts[0].dataset, sample_steps)
    for key, moments in sample.moments.items():
        joined.moments[key] = replace(joined.moments[key], sample=moments.sample)
    return joined.statistics(), _period_s(plan, training, chosen, sample)


def _part(plan: MergePlan, part: Part) -> StatisticsPart | None:
    """Return the figures of a part's training episodes that stay, or None where none does."""
    entries = plan.training(part)
    if not entries:
        return None
    held = part.manifest.splits.get("train", [])
    if len(entries) < len(held):
        return _without_sample(_count([Kept(part, entry, "train") for entry in entries], part.dataset))
    known = part.dataset.statistics
    steps = sum(entry.length for entry in entries)
    moments = {
        **{f"observation/{path}": Moments.of_figures(its, steps) for path, its in known.observation.items()},
        **{f"action/{path}": Moments.of_figures(its, known.num_transitions) for path, its in known.action.items()},
        "reward": Moments.of_figures(known.reward, known.num_transitions),
    }
    return StatisticsPart(moments, [], known.num_transitions, known.num_trajectories)


def _without_sample(part: StatisticsPart) -> StatisticsPart:
    moments = {key: replace(moments, sample=[], sampled=[]) for key, moments in part.moments.items()}
    return replace(part, moments=moments)


def _bottom(training: Iterable[Kept], sample_steps: int) -> Iterator[Kept]:
    steps = 0
    for kept in training:
        if steps >= sample_steps:
            return
        steps += kept.entry.length
        yield kept


def _count(chosen: Sequence[Kept], dataset: Dataset, sample_steps: int = SAMPLE_STEPS) -> StatisticsPart:
    """Read episodes and count their steps."""
    builder = StatisticsBuilder(dataset.spec, dataset.profile, sample_steps)
    numeric = {path: feature for path, feature in step_features(dataset.spec).items() if feature.is_numeric}
    for kept, payload in _read(chosen):
        builder.add(decode_episode(payload, numeric, kept.entry.length, kept.entry.episode_id))
    return builder.part()


def _read(chosen: Sequence[Kept]) -> Iterator[tuple[Kept, bytes]]:
    """Yield the payload of each episode, in order; those of one part are read some megabytes at a time."""
    for group in _groups(chosen):
        folder = group[0].part.dataset.folder
        ranges = [Range(kept.entry.shard, kept.entry.offset_bytes, kept.entry.size_bytes) for kept in group]
        for kept, record in zip(group, folder.read_ranges(ranges), strict=True):
            yield kept, unframe(record, f"{folder.location}/{kept.entry.shard}", kept.entry.offset_bytes)


def _groups(chosen: Sequence[Kept]) -> Iterator[list[Kept]]:
    group: list[Kept] = []
    size_bytes = 0
    for kept in chosen:
        if group and (kept.part is not group[0].part or size_bytes + kept.entry.size_bytes > _READ_BYTES):
            yield group
            group, size_bytes = [], 0
        group.append(kept)
        size_bytes += kept.entry.size_bytes
    if group:
        yield group


def _period_s(plan: MergePlan, training: Sequence[Kept], chosen: Sequence[Kept], sample: StatisticsPart) -> float:
    if len(chosen) == len(training):
        return sample.control_period_s
    with_training = [part for part in plan.parts if plan.training(part)]
    periods = {part.manifest.control_period_s for part in with_training} - {0.0}
    whole = all(len(plan.training(part)) == len(part.manifest.splits["train"]) for part in with_training)
    if whole and len(periods) == 1:
        return periods.pop()
    # Equal medians are the whole's as well: the gaps around each are symmetric to it. Else all episodes count.
    return _count(training, plan.parts[0].dataset).control_period_s
