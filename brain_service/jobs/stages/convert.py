"""Stage: episodes become an RLDS dataset."""

import shlex
from collections.abc import Mapping
from typing import Any

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import open_dataset
from brain_service.errors import InvalidError
from brain_service.jobs.context import JobContext
from brain_service.jobs.params import ConvertParams, PipelineParams, TrainParams
from brain_service.jobs.references import dataset_path
from brain_service.jobs.stages import Outcome

__all__ = ["command", "run"]


def command(context: JobContext) -> str:
    """Return the command line's conversion of the same folder."""
    settings = context.settings
    return shlex.join(
        ["brain", "convert", "--input-dir", str(settings.episodes_dir), "--output-dir", str(settings.datasets_dir)]
    )


def run(context: JobContext) -> Outcome:
    """Convert all ended episodes, or look up the dataset that the job names.

    Raises:
        InvalidError: no episode can be converted, or a pipeline would have none to evaluate on.
        NotFoundError: the named dataset does not exist.
        UnavailableError: the medium is full or read-only.
        CancelledJobError: the job was asked to stop.
    """
    params, settings = context.params, context.settings
    if isinstance(params, TrainParams) and params.dataset is not None:
        manifest = open_dataset(dataset_path(settings, params.dataset)).manifest
        result = {
            "name": manifest.name,
            "version": manifest.version,
            "splits": manifest.split_episodes(),
        }
        _require_held_out(context, result)
        return Outcome(f"{manifest.name}/{manifest.version} was given", {"dataset": result}, skipped=True)
    options = params if isinstance(params, ConvertParams) else ConvertParams()
    settings.episodes_dir.mkdir(parents=True, exist_ok=True)
    report = convert_directory_to_tfrecord(
        settings.episodes_dir,
        settings.datasets_dir,
        options.compress,
        name=options.name,
        profile=options.profile,
        val_fraction=options.val_fraction,
        drop_missing=options.drop_missing,
        progress=lambda done, total: context.report(done / max(total, 1)),
    )
    for left_out in report.quarantined:
        context.say(f"left out {left_out['file']}: {left_out['reason']}")
    if report.kept:
        context.say(f"{len(report.kept)} logs are gone since an earlier conversion; their episodes stay")
    for damaged in report.passed_over:
        context.say(f"version {damaged['version']} was not built upon: {damaged['reason']}")
    names = ("name", "version", "splits", "episodes", "steps", "quarantined", "skipped_open", "reused")
    result = {name: getattr(report, name) for name in names}
    _require_held_out(context, result)
    splits = ", ".join(f"{count} {split}" for split, count in sorted(report.splits.items()))
    reused = " (unchanged since an earlier conversion)" if report.reused else ""
    return Outcome(
        f"{report.episodes} episodes ({splits}), {report.steps} steps, {len(report.quarantined)} left out{reused}",
        {"dataset": result},
    )


def _require_held_out(context: JobContext, dataset: Mapping[str, Any]) -> None:
    """Refuse before hours of training what the stage `evaluate` would refuse after them."""
    if isinstance(context.params, PipelineParams) and not dataset["splits"].get("val"):
        raise InvalidError(
            f"{dataset['name']}/{dataset['version']} holds out no episode to evaluate on; record at least two "
            "episodes, then start the job again (POST /train needs only one)"
        )
