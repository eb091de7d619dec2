"""Stage: the bundle that a run away from here made comes down, checked file by file."""

from brain_service.cloud.download import download_bundle
from brain_service.cloud.patience import OfflineError
from brain_service.export.bundle import read_manifest
from brain_service.jobs.context import JobContext
from brain_service.jobs.stages import Outcome

__all__ = ["command", "run"]


def command(context: JobContext) -> str | None:
    """Return how to copy the same bundle by hand."""
    run = context.result["run"]
    place = f"{run['output_dir']}/models/{run['model_id']}"
    copy = "gcloud storage cp" if place.startswith("gs://") else "cp"
    return f"{copy} -r {place} {context.settings.models_dir}"


def run(context: JobContext) -> Outcome:
    """Download the run's bundle into the models; nothing of it is served yet.

    Raises:
        ParkedJob: the network is away.
        CancelledJobError: the job was asked to stop.
        CorruptDataError: a file is not what the manifest says.
        ForbiddenError: its signature is missing or of another key.
    """
    context.check_stop()
    settings, trained = context.settings, context.result["run"]
    try:
        model_id = download_bundle(
            f"{trained['output_dir']}/models/{trained['model_id']}",
            settings.models_dir,
            settings.cloud,
            progress=lambda done, total, _: context.report(done / max(total, 1)),
            should_stop=context.should_stop,
        )
    except OfflineError as error:
        raise context.parked(error.retry_after_s, error.detail) from error
    context.check_stop()
    size_bytes = sum(entry.size_bytes for entry in read_manifest(settings.models_dir / model_id).files.values())
    return Outcome(f"model {model_id}, {size_bytes / 1e6:.1f} MB", {"model_id": model_id})
