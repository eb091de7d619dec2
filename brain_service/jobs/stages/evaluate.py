"""Stage: how good the model is on episodes that it never trained on, and whether it may replace the active one."""

import contextlib
import shlex
from dataclasses import replace
from pathlib import Path

from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.errors import BrainError
from brain_service.export.bundle import Bundle
from brain_service.export.subject import bundle_subject
from brain_service.jobs.context import JobContext
from brain_service.jobs.folder import JobFolder
from brain_service.jobs.params import EvaluateParams
from brain_service.jobs.references import (
    checkpoint_path,
    dataset_folder,
    dataset_identity,
    dataset_path,
    job_dataset,
)
from brain_service.jobs.stages import Outcome
from brain_service.training.checkpointing import load_checkpoint
from brain_service.training.evaluation import Promotion, Subject, evaluate_subject, judge_promotion, write_report

__all__ = ["command", "run"]


def command(context: JobContext) -> str | None:
    """Return the command line's evaluation of the same checkpoint; None for a bundle that came from elsewhere."""
    if "run" in context.result:
        return None
    settings = context.settings
    if isinstance(context.params, EvaluateParams):
        checkpoint, dataset, split = _inputs(context)
    else:
        checkpoint = settings.checkpoints_dir / context.result["train"]["checkpoint"]
        dataset, split = dataset_folder(settings, context.result), "val"
    words = ["brain", "evaluate", "--checkpoint-dir", str(checkpoint), "--data-path", str(dataset)]
    return shlex.join([*words, "--split", split])


def run(context: JobContext) -> Outcome:
    """Evaluate what the stage before left, or the checkpoint that the job names; the job keeps the report.

    Raises:
        NotFoundError: there is no such checkpoint, dataset or split.
        InvalidError: the dataset's features are not the checkpoint's.
        CorruptDataError: a shard, the checkpoint or the bundle is damaged.
    """
    subject, dataset, split, step = _fetched(context) if "run" in context.result else _trained(context)
    found = evaluate_subject(subject, dataset, split=split, step=step)
    context.check_stop()
    promotion = _against_active(context, subject, dataset) if split == "val" else None
    found = replace(found, promotion=promotion)
    write_report(JobFolder(context.settings.jobs_dir, context.job.job_id).path, found)
    context.check_stop()
    verdict = "" if promotion is None else f"; {'promoted' if promotion.promoted else 'not promoted'}"
    return Outcome(f"{found}{verdict}", {"evaluation": found.to_json()})


def _trained(context: JobContext) -> tuple[Subject, Dataset, str, int]:
    """Return the checkpoint as a subject, the episodes to judge it on, and its step."""
    checkpoint, folder, split = _inputs(context)
    loaded = load_checkpoint(checkpoint)
    subject = Subject.of_checkpoint(loaded, f"checkpoint {checkpoint.name}, step {loaded.step}")
    return subject, open_dataset(folder), split, loaded.step


def _fetched(context: JobContext) -> tuple[Subject, Dataset, str, int]:
    """Return the bundle that came down as a subject, the held-out episodes here, and the steps of its run."""
    dataset = open_dataset(job_dataset(context.settings, context.result))
    bundle = Bundle.open(context.settings.models_dir / context.result["model_id"])
    return bundle_subject(bundle, dataset_identity(dataset)), dataset, "val", int(context.result["run"]["steps"])


def _against_active(context: JobContext, candidate: Subject, dataset: Dataset) -> Promotion | None:
    """Return the verdict beside the active model, None where none is active."""
    settings = context.settings
    link = settings.models_dir / "active"
    if not link.is_symlink():
        return None
    name = str(link.readlink())
    try:
        bundle = Bundle.open(settings.models_dir / name)
        active = bundle_subject(bundle, _trained_on(context, bundle.manifest.source_run))
    except BrainError as error:
        # Nothing to be held against: whether the candidate is better is for a person to say.
        return Promotion(False, f"the active model {name} cannot be read: {error.detail}", name)
    return judge_promotion(candidate, active, dataset)


def _trained_on(context: JobContext, run_id: str) -> dict[str, str] | None:
    """Return the dataset that a run trained on: its checkpoints know, else its job; None where both are gone."""
    settings = context.settings
    with contextlib.suppress(BrainError):
        return dict(load_checkpoint(settings.checkpoints_dir / run_id).meta["dataset"]) if run_id else None
    try:
        result = context.table.get(run_id).result
        return dataset_identity(open_dataset(job_dataset(settings, result))) if "dataset" in result else None
    except BrainError:
        return None


def _inputs(context: JobContext) -> tuple[Path, Path, str]:
    """Return the folders of checkpoint and dataset, and the split."""
    params, settings = context.params, context.settings
    if isinstance(params, EvaluateParams):
        checkpoint = checkpoint_path(settings, params.checkpoint)
        return checkpoint, dataset_path(settings, params.dataset), params.split
    trained = context.result["train"]["checkpoint"]
    return checkpoint_path(settings, trained), job_dataset(settings, context.result), "val"
