"""Stage: a checkpoint becomes a bundle that can be served."""

import shlex
from pathlib import Path

from brain_service.export.bundle import read_manifest
from brain_service.export.forms import FORMS, default_forms
from brain_service.export.jax_step import export_jax
from brain_service.jobs.context import JobContext
from brain_service.jobs.params import ExportParams, PipelineParams
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
    settings, models = context.settings, context.settings.models_dir
    if isinstance(context.params, ExportParams):
        checkpoint = checkpoint_of(context)
    else:
        checkpoint = settings.checkpoints_dir / context.result["train"]["checkpoint"]
    words = ["brain", "export", "--checkpoint-dir", str(checkpoint), "--output-dir", str(models)]
    if (quantisation := _quantisation(context)) != "none":
        words += ["--quantization", quantisation]
    return shlex.join(words)


def run(context: JobContext) -> Outcome:
    """Export the best checkpoint of the run in every form that can be made here.

    The same checkpoint and quantisation give the same model id.

    Raises:
        NotFoundError: there is no checkpoint.
        CorruptDataError: it cannot be restored, or a compiled form does not give the model's numbers.
        InvalidError: the quantised actions are too far from the model's.
        UnavailableError: the bundle cannot be written.
        CancelledJobError: the job was asked to stop.
    """
    checkpoint, models = checkpoint_of(context), context.settings.models_dir
    models.mkdir(parents=True, exist_ok=True)
    path = export_jax(
        checkpoint,
        models,
        quantisation=_quantisation(context),
        forms=default_forms(),
        evaluation=context.result.get("evaluation"),
        source_run=checkpoint.name,
        progress=lambda done, total, _: context.report(done / total),
    )
    manifest = read_manifest(path)
    size_bytes = sum(entry.size_bytes for entry in manifest.files.values())
    forms = [name for name, form in FORMS.items() if form.file in manifest.files]
    return Outcome(
        f"model {path.name} as {' and '.join(forms)}, {size_bytes / 1e6:.1f} MB",
        {
            "model_id": path.name,
            "export": {
                "checkpoint": checkpoint.name,
                "quantisation": manifest.quantisation,
                "forms": forms,
                "size_bytes": size_bytes,
                "parity": {form: parity.measured for form, parity in manifest.parity.items()},
            },
        },
    )


def _quantisation(context: JobContext) -> str:
    params = context.params
    return params.quantization if isinstance(params, ExportParams | PipelineParams) else "none"
