"""Stage: how well the model's actions agree with those of episodes that it never trained on."""

import shlex
from pathlib import Path

from brain_service.jobs.context import JobContext
from brain_service.jobs.params import EvaluateParams
from brain_service.jobs.references import checkpoint_path, dataset_path, job_dataset
from brain_service.jobs.stages import Outcome
from brain_service.training.evaluation import evaluate

__all__ = ["command", "run"]


def command(context: JobContext) -> str:
    """Return the command line's evaluation of the same checkpoint."""
    checkpoint, dataset, split = _inputs(context)
    return shlex.join(
        [
            *("brain", "evaluate", "--checkpoint-dir", str(checkpoint)),
            *("--data-path", str(dataset), "--split", split),
        ]
    )


def run(context: JobContext) -> Outcome:
    """Evaluate the checkpoint of the stage before, or the one that the job names.

    Raises:
        NotFoundError: there is no such checkpoint, dataset or split.
        InvalidError: the dataset's features are not the checkpoint's.
        CorruptDataError: a shard or the checkpoint is damaged.
    """
    checkpoint, dataset, split = _inputs(context)
    found = evaluate(checkpoint, dataset, split=split)
    context.check_stop()
    return Outcome(str(found), {"evaluation": found.to_json()})


def _inputs(context: JobContext) -> tuple[Path, Path, str]:
    """Return the folders of checkpoint and dataset, and the split."""
    params, settings = context.params, context.settings
    if isinstance(params, EvaluateParams):
        checkpoint = checkpoint_path(settings, params.checkpoint)
        return checkpoint, dataset_path(settings, params.dataset), params.split
    trained = context.result["train"]["checkpoint"]
    return checkpoint_path(settings, trained), job_dataset(settings, context.result), "val"
