"""Stage: train on the dataset, going on from the run's newest checkpoint where there is one."""

import shlex
from typing import Any

from brain_service.hardware.gate import Gate
from brain_service.jobs.context import JobContext
from brain_service.jobs.hold import Hold
from brain_service.jobs.params import TrainParams
from brain_service.jobs.references import dataset_folder, job_dataset
from brain_service.jobs.stages import Outcome
from brain_service.training.config import TrainConfig
from brain_service.training.loop import Hooks, TrainProgress, TrainResult, train

__all__ = ["command", "run"]

CHOICES = (
    *("preset", "mode", "steps", "batch_size", "sequence_length", "learning_rate", "seed"),
    *("checkpoint_every", "evaluate_every", "patience"),
)


def command(context: JobContext) -> str:
    """Return the command line's training on the same dataset with the same settings."""
    settings, result = context.settings, context.result
    return shlex.join(
        [
            *("brain", "train", "--data-path", str(dataset_folder(settings, result))),
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

    While a gate is closed (heat, power, an operator's pause) the job rests and says so; it can be cancelled all
    the same.

    Raises:
        InvalidError: a setting does not fit the data.
        CorruptDataError: a shard is damaged, or the loss is not finite.
        CancelledJobError: the job was asked to stop.
    """
    run_id = context.job.job_id
    gates = (Hold(context.settings.jobs_dir), Gate(context.settings.gates))
    done = train(
        job_dataset(context.settings, context.result),
        context.settings.checkpoints_dir / run_id,
        TrainConfig.from_dict(_chosen(context)),
        hooks=Hooks(
            on_progress=lambda progress: _report(context, progress),
            should_stop=context.should_stop,
            pause_reason=lambda: "; ".join(reason for gate in gates if (reason := gate.reason())),
            on_pause=context.pause,
        ),
    )
    context.check_stop()
    result = {name: value for name, value in done.to_json().items() if name != "checkpoint_dir"}
    result = {"checkpoint": run_id, "steps": result.pop("step")} | result
    return Outcome(_summary(done), {"train": result})


def _summary(done: TrainResult) -> str:
    loss = "" if done.final_loss is None else f", loss {done.final_loss:.3f}, {done.steps_per_s:.1f} steps/s"
    best = "" if done.best_loss is None else f", best held-out loss {done.best_loss:.3f} at step {done.best_step}"
    early = " (stopped early)" if done.stopped_early else ""
    resumed = "" if done.resumed_from is None else f", resumed at step {done.resumed_from}"
    paused = f", paused for {done.paused_s:.0f} s" if done.paused_s >= 1 else ""
    return f"{done.step} steps{early}{loss}{best}{resumed}{paused}"


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
