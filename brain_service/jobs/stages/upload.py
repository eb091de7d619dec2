"""Stage: the dataset goes to the bucket, a piece at a time, for as long as the network takes."""

import shlex
from pathlib import Path

from brain_service.cloud.upload_queue import OfflineError, UploadQueue
from brain_service.jobs.context import JobContext
from brain_service.jobs.params import TrainParams, UploadParams
from brain_service.jobs.references import dataset_folder, dataset_path
from brain_service.jobs.stages import Outcome

__all__ = ["command", "run"]

FOLDER = "datasets"


def command(context: JobContext) -> str | None:
    """Return the command line's upload of the same dataset."""
    cloud = context.settings.cloud
    if cloud.bucket is None or _stays_here(context):
        return None
    words = ["brain", "upload", "--local-dir", str(_dataset(context)), "--gcs-bucket", cloud.bucket]
    return shlex.join([*words, "--gcs-prefix", f"{cloud.prefix}/{FOLDER}"])


def run(context: JobContext) -> Outcome:
    """Upload what is not there yet; without network the job waits, however long, and goes on where it stood.

    Raises:
        CancelledJobError: the job was asked to stop; what was sent stays.
        ParkedJob: the network is away, or its hours are not these.
        CorruptDataError: a file changed since the upload began.
        ConflictError: another content has the same name in the bucket.
        UnauthorizedError: there are no credentials, or they are not good any more.
        ForbiddenError: they do not allow it.
        NotFoundError: there is no such bucket or dataset.
    """
    context.check_stop()
    if _stays_here(context):
        return Outcome("the run reads the dataset where it is", skipped=True)
    settings, folder = context.settings, _dataset(context)
    try:
        with UploadQueue(settings.database, settings.cloud) as queue:
            upload_id = queue.add_dataset(folder, f"gs://{settings.cloud.bucket}/{settings.cloud.prefix}/{FOLDER}")
            report = queue.work(
                upload_id,
                progress=lambda done, total, _: context.report(done / max(total, 1)),
                should_stop=context.should_stop,
            )
    except OfflineError as error:
        raise context.parked(error.retry_after_s, error.detail) from error
    context.check_stop()
    details = f"{report.sent} files, {report.sent_bytes / 1e6:.1f} MB sent, {report.skipped} there already"
    return Outcome(f"{report.location}: {details}", {"upload": report.to_json()})


def _stays_here(context: JobContext) -> bool:
    return isinstance(context.params, TrainParams) and context.params.target == "process"


def _dataset(context: JobContext) -> Path:
    if isinstance(context.params, UploadParams):
        return dataset_path(context.settings, context.params.dataset)
    return dataset_folder(context.settings, context.result)
