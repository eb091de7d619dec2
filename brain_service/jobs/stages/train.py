"""Stage: train the model, resuming from the newest checkpoint of this job if an earlier attempt left one."""

import shlex
from typing import Any

from brain_service.jobs.context import JobContext
from brain_service.jobs.params import TrainParams
from brain_service.jobs.references import job_dataset
from brain_service.jobs.stages import Outcome
from brain_service.training.config import TrainConfig
from brain_service.training.loop import TrainProgress, train

__all__ = ["command", "run"]


def command(context: JobContext) -> str:
    """Return the command line's training on the same dataset with the same settings."""
    settings, result = context.settings, context.result
    return shlex.join(
        [
            *("brain", "train", "--data-path", str(job_dataset(settings, result))),
            *("--checkpoint-dir", str(settings.checkpoints_dir / context.job.job_id)),
            *(
                part
                for name, value in _chosen(context).items()
                for part in (f"--{name.replace('_', '-')}", str(value))
            ),
        ]
    )


def run(context: JobContext) -> Outcome:
    """Train on the dataset of the stage before; the run is named after the job.

    Raises:
        InvalidError: a setting does not fit the data.
        CorruptDataError: a shard or checkpoint is damaged.
        CancelledJobError: the job was asked to stop.
    """
    run_id = context.job.job_id
    done = train(
        job_dataset(context.settings, context.result),
        context.settings.checkpoints_dir / run_id,
        TrainConfig.from_dict(_chosen(context)),
        on_progress=lambda progress: _report(context, progress),
        should_stop=context.should_stop,
    )
    context.check_stop()
    result = {
        "checkpoint": run_id,
        "steps": done.step,
        "final_loss": done.final_loss,
        "steps_per_s": done.steps_per_s,
        "duration_s": done.duration_s,
        "resumed_from": done.resumed_from,
    }
    loss = "" if done.final_loss is None else f", loss {done.final_loss:.3f}, {done.steps_per_s:.1f} steps/s"
    resumed = "" if done.resumed_from is None else f", resumed at step {done.resumed_from}"
    return Outcome(f"{done.step} steps{loss}{resumed}", {"train": result})


def _chosen(context: JobContext) -> dict[str, Any]:
    """Return the settings that the request names; the rest is the trainer's to choose."""
    assert isinstance(context.params, TrainParams)
    names = ("preset", "steps", "batch_size", "sequence_length", "learning_rate", "seed")
    values = {name: getattr(context.params, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _report(context: JobContext, progress: TrainProgress) -> None:
    context.report(
        progress.step / max(progress.steps, 1),
        **progress.metrics,
        step=progress.step,
        steps=progress.steps,
        steps_per_s=progress.steps_per_s,
    )
