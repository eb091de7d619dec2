"""One shard, cut out of the parts; what was written is what is counted."""

import hashlib
from dataclasses import dataclass

from brain_service.datasets.columns import step_features
from brain_service.datasets.manifest import ShardEntry
from brain_service.datasets.record import decode_episode
from brain_service.datasets.statistics import StatisticsBuilder, StatisticsPart
from brain_service.datasets.storage import Range
from brain_service.datasets.tfrecord import unframe
from brain_service.errors import CorruptDataError
from brain_service.spec import EpisodeSpec
from cloud_trainer.fleet.plan import Refusal, Reuse, ShardTask, Task
from cloud_trainer.fleet.run import Run

__all__ = ["Done", "ShardDone", "do_task"]


@dataclass(frozen=True)
class ShardDone:
    """A shard that is written, and the figures of its steps where it belongs to the training split."""

    index: int
    entry: ShardEntry
    part: StatisticsPart | None


Done = ShardDone | Reuse | Refusal


def do_task(task: Task, run: Run) -> Done:
    """Write the shard of a task; what is no shard passes on.

    Raises:
        CorruptDataError: a part is not what its index says.
        UnavailableError: it cannot be written now.
    """
    return _write(task, run) if isinstance(task, ShardTask) else task


def _write(task: ShardTask, run: Run) -> ShardDone:
    spec = EpisodeSpec.from_json(task.spec)
    # Texts and images have no figures and would take long to decode.
    numeric = {path: feature for path, feature in step_features(spec).items() if feature.is_numeric}
    counted = None if task.sample is None else StatisticsBuilder(spec, run.profile, place=task.sample)
    digest, size_bytes = hashlib.sha256(), 0
    parts = run.parts.folder
    with run.shards.stream(task.file) as file:
        for entry, (part, start_byte) in zip(task.entries, task.origins, strict=True):
            (record,) = parts.read_ranges([Range(part, start_byte, entry.size_bytes)])
            if hashlib.sha256(record).hexdigest() != entry.sha256:
                raise CorruptDataError(
                    f"{parts.location}/{part}: episode {entry.episode_id} is not what was encoded"
                )
            payload = unframe(record, part, start_byte)
            if counted is not None:
                counted.add(decode_episode(payload, numeric, entry.length, entry.episode_id))
            file.write(record)
            digest.update(record)
            size_bytes += len(record)
    made = ShardEntry(task.file, task.split, len(task.entries), size_bytes, digest.hexdigest())
    return ShardDone(task.index, made, None if counted is None else counted.part())
