"""A run's bundle comes home: fetched into a folder aside, verified, and seen only once it is whole.

manifest  read first, and nothing that it says is believed before its checksum, its names and, with a public
          key, its signature hold
files     fetched one by one into `.<model_id>.download/`, each against its size and SHA-256; a killed call's
          are kept
bundle    opened as the daemon opens it, then published by one rename
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from brain_service.cloud.patience import RetryPolicy, ShouldStop, check_stop, wait_for_lock
from brain_service.cloud.signing import SIGNATURE_FILE, verify_signature
from brain_service.cloud.storage import Remote, open_remote
from brain_service.durable import make_directory, publish_directory
from brain_service.errors import (
    BrainError,
    ConflictError,
    CorruptDataError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from brain_service.export.bundle import MANIFEST, Bundle, is_model_id, read_manifest
from brain_service.export.manifest import Manifest
from brain_service.settings import CloudSettings

__all__ = ["DownloadProgress", "download_bundle"]

DownloadProgress = Callable[[int, int, str], None]
"""Told of the bytes that are there, of all of them, and of the file that comes."""

MAX_MANIFEST_BYTES = 16 * 1024**2
MAX_FILES = 1000
_MAX_SIGNATURE_BYTES = 1024
_DIGEST = re.compile("[0-9a-f]{64}")


def download_bundle(
    source: str,
    models_dir: Path,
    settings: CloudSettings,
    progress: DownloadProgress | None = None,
    should_stop: ShouldStop | None = None,
    policy: RetryPolicy | None = None,
) -> str:
    """Fetch the bundle at `.../models/<model_id>` (`gs://` or local) into `models_dir` and return its model id.

    A bundle of that id that is here and verifies is left as it is, and nothing is fetched but the manifest. With
    `settings.public_key` the manifest needs a good `manifest.sig`. Nothing is activated here.

    Raises:
        InvalidError: the source's name is no model id.
        NotFoundError: there is no bundle.
        CorruptDataError: a file is not what the manifest says, or the manifest is not sound; nothing is published.
        ForbiddenError: the signature is missing or another's (see `signing`), or the service refuses.
        ConflictError: a damaged bundle of that id is here; it is not replaced.
        UnavailableError: the medium is full or read-only; OfflineError where the network is away.
        CancelledJobError: it was asked to stop; the same call goes on from there.
    """
    model_id = source.rstrip("/").rsplit("/", 1)[-1]
    if not is_model_id(model_id):
        raise InvalidError(f"{source} names no model: its last part must be 16 hex digits", field="source")
    place = open_remote(source, settings, policy or RetryPolicy())
    try:
        make_directory(models_dir)
        with _staging(models_dir, model_id, should_stop) as staging:
            manifest = _take_manifest(place, staging, model_id, settings)
            if (models_dir / model_id).exists():
                _require_whole(models_dir / model_id)
                shutil.rmtree(staging)
                return model_id
            _require_space(staging, manifest)
            _take_files(place, staging, manifest, progress, should_stop)
            _publish(staging, models_dir / model_id)
    except OSError as error:
        raise UnavailableError(
            f"cannot write {models_dir / model_id}: {error.strerror or error}; free space or fix the folder"
        ) from error
    return model_id


@contextmanager
def _staging(models_dir: Path, model_id: str, should_stop: ShouldStop | None) -> Iterator[Path]:
    """Yield the folder in which the bundle gathers; one download at a time, another call waits for its turn."""
    folder = models_dir / f".{model_id}.download"
    with (models_dir / ".download.lock").open("ab") as lock:
        wait_for_lock(lock, should_stop)
        make_directory(folder)
        yield folder


def _take_manifest(place: Remote, staging: Path, model_id: str, settings: CloudSettings) -> Manifest:
    """Fetch the manifest, check all that can be checked of it, and leave it in the staging folder.

    Raises:
        BrainError: as `download_bundle`.
    """
    where = f"{place.location}/{MANIFEST}"
    try:
        data = place.read(MANIFEST, max_bytes=MAX_MANIFEST_BYTES)
    except NotFoundError as error:
        raise NotFoundError(f"no bundle at {place.location}: {error.detail}") from error
    signature = _signature(place)
    if settings.public_key is not None:
        verify_signature(data, signature, settings.public_key, place.location)
    (staging / MANIFEST).write_bytes(data)
    _keep_signature(staging, signature)
    try:
        manifest = read_manifest(staging)
    except CorruptDataError as error:
        (staging / MANIFEST).unlink()
        raise CorruptDataError(error.detail.replace(str(staging / MANIFEST), where)) from error
    if manifest.model_id != model_id:
        raise CorruptDataError(f"{where} is that of model {manifest.model_id}; the bundle was copied wrongly")
    if len(manifest.files) > MAX_FILES or SIGNATURE_FILE in manifest.files:
        raise CorruptDataError(f"{where}: lists {len(manifest.files)} files, or {SIGNATURE_FILE}; no export does")
    for name, entry in manifest.files.items():
        if type(entry.size_bytes) is not int or entry.size_bytes <= 0 or not _is_digest(entry.sha256):
            raise CorruptDataError(
                f"{where}: {name} has the size {entry.size_bytes!r} and SHA-256 {entry.sha256!r}"
            )
    return manifest


def _signature(place: Remote) -> bytes | None:
    try:
        return place.read(SIGNATURE_FILE, max_bytes=_MAX_SIGNATURE_BYTES)
    except NotFoundError:
        return None


def _keep_signature(staging: Path, signature: bytes | None) -> None:
    if signature is None:
        (staging / SIGNATURE_FILE).unlink(missing_ok=True)
    else:
        (staging / SIGNATURE_FILE).write_bytes(signature)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _require_space(staging: Path, manifest: Manifest) -> None:
    """Refuse a bundle that cannot fit, before the first byte of it.

    Raises:
        UnavailableError: it does not fit.
    """
    total_bytes = sum(entry.size_bytes for entry in manifest.files.values())
    here_bytes = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    free_bytes = shutil.disk_usage(staging).free
    if total_bytes - here_bytes > free_bytes:
        raise UnavailableError(
            f"the model takes {total_bytes} bytes, and {staging.parent} has {free_bytes} free; free space"
        )


def _take_files(
    place: Remote,
    staging: Path,
    manifest: Manifest,
    progress: DownloadProgress | None,
    should_stop: ShouldStop | None,
) -> None:
    total_bytes = sum(entry.size_bytes for entry in manifest.files.values())
    before_bytes = 0
    for name, entry in manifest.files.items():
        check_stop(should_stop)

        def told(done_bytes: int, _: int, name: str = name, before_bytes: int = before_bytes) -> None:
            if progress is not None:
                progress(before_bytes + done_bytes, total_bytes, name)

        try:
            place.download(name, staging / name, entry.size_bytes, entry.sha256, told, should_stop)
        except NotFoundError as error:
            raise CorruptDataError(
                f"{place.location}: its manifest lists {name}, which is not there; the upload is not finished, or "
                "a file was removed",
                file=name,
            ) from error
        before_bytes += entry.size_bytes
        told(0, total_bytes, before_bytes=before_bytes)


def _publish(staging: Path, final: Path) -> None:
    """Verify the whole bundle once more, as who serves it does, and give it its name.

    Raises:
        CorruptDataError: it does not hold together; it is removed.
    """
    expected = {MANIFEST, SIGNATURE_FILE, *read_manifest(staging).files}
    for path in sorted(staging.rglob("*"), reverse=True):
        # Of an earlier manifest, or of a killed call.
        if path.is_file() and path.relative_to(staging).as_posix() not in expected:
            path.unlink()
    try:
        Bundle.open(staging)
    except BrainError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    with suppress(FileExistsError):
        publish_directory(staging, final)
        return
    _require_whole(final)


def _require_whole(path: Path) -> None:
    try:
        Bundle.open(path)
    except CorruptDataError as error:
        raise ConflictError(
            f"{error.detail}; the bundle is here, damaged, and not replaced: remove {path} and download it again"
        ) from error
