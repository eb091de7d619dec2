"""Stage: train on the dataset, going on from where the run stands."""

from functools import partial
from typing import Any

from brain_service.jobs.bases import find_base
from brain_service.jobs.context import JobContext
from brain_service.jobs.hold import Hold
from brain_service.jobs.params import TrainParams
from brain_service.jobs.references import dataset_folder, job_dataset
from brain_service.jobs.stages import Outcome
from brain_service.training.loop import Hooks, TrainProgress
from brain_service.training.trainers import TRAINERS, Assignment

__all__ = ["command", "run"]

CHOICES = (
    *("preset", "mode", "steps", "batch_size", "sequence_length", "learning_rate", "seed"),
    *("checkpoint_every", "evaluate_every", "patience", "image", "image_size"),
)


def command(context: JobContext) -> str:
    """Return the command line's training on the same dataset with the same settings."""
    dataset = dataset_folder(context.settings, context.result)
    trainer = TRAINERS[context.trainer]
    return trainer.command(context.settings, dataset, context.job.job_id, _chosen(context))


def run(context: JobContext) -> Outcome:
    """Train on the dataset of the stage before with the job's trainer; the run is named after the job.

    While a gate is closed (heat, power, an operator's pause) the job rests and says so; it can be cancelled all
    the same.

    Raises:
        InvalidError: a setting does not fit the data.
        CorruptDataError: a shard is damaged, or the loss is not finite.
        UnavailableError: the trainer's framework or a sensor that it needs is missing.
        CancelledJobError: the job was asked to stop.
    """
    settings = context.settings
    hold = Hold(settings.jobs_dir)
    done = TRAINERS[context.trainer].train(
        Assignment(
            dataset=job_dataset(settings, context.result),
            run_id=context.job.job_id,
            settings=settings,
            choices=_chosen(context),
            hooks=Hooks(
                on_progress=lambda progress: _report(context, progress),
                should_stop=context.should_stop,
                pause_reason=hold.reason,
                on_pause=context.pause,
            ),
            find_base=partial(find_base, settings),
            who=f"job {context.job.job_id}",
        )
    )
    context.check_stop()
    return Outcome(done.summary, {"train": dict(done.result)})


def _chosen(context: JobContext) -> dict[str, Any]:
    """Return the settings that the request names; the rest is the trainer's to choose."""
    assert isinstance(context.params, TrainParams)
    values = {name: getattr(context.params, name) for name in CHOICES}
    return {name: value for name, value in values.items() if value is not None}


def _report(context: JobContext, progress: TrainProgress) -> None:
    context.report(
        progress.step / max(progress.steps, 1),
        **{
            **progress.metrics,
            "step": progress.step,
            "steps": progress.steps,
            "steps_per_s": progress.steps_per_s,
        },
    )
