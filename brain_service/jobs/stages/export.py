"""Stage: a checkpoint becomes a bundle that can be served."""

import shlex
from pathlib import Path

from brain_service.export.jax_step import export_jax
from brain_service.jobs.context import JobContext
from brain_service.jobs.params import ExportParams
from brain_service.jobs.references import checkpoint_path
from brain_service.jobs.stages import Outcome

__all__ = ["checkpoint_of", "command", "run"]


def checkpoint_of(context: JobContext) -> Path:
    """Return the folder of the checkpoints that this job exports.

    Raises:
        NotFoundError: there is no such run.
    """
    if isinstance(context.params, ExportParams):
        return checkpoint_path(context.settings, context.params.checkpoint)
    return checkpoint_path(context.settings, context.result["train"]["checkpoint"])


def command(context: JobContext) -> str:
    """Return the command line's export of the same checkpoint."""
    checkpoint, models = checkpoint_of(context), context.settings.models_dir
    return shlex.join(["brain", "export", "--checkpoint-dir", str(checkpoint), "--output-dir", str(models)])


def run(context: JobContext) -> Outcome:
    """Export the newest checkpoint of the run; the same checkpoint gives the same model id.

    Raises:
        NotFoundError: there is no checkpoint.
        CorruptDataError: it cannot be restored, or the compiled step does not give the model's numbers.
        UnavailableError: the bundle cannot be written.
    """
    checkpoint, models = checkpoint_of(context), context.settings.models_dir
    models.mkdir(parents=True, exist_ok=True)
    bundle = export_jax(
        checkpoint, models, evaluation=context.result.get("evaluation"), source_run=checkpoint.name
    )
    context.check_stop()
    size_bytes = sum(file.stat().st_size for file in bundle.iterdir())
    return Outcome(
        f"model {bundle.name}, {size_bytes / 1e6:.1f} MB",
        {"model_id": bundle.name, "export": {"checkpoint": checkpoint.name, "size_bytes": size_bytes}},
    )
