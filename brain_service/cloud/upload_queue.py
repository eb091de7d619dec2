"""The upload queue: datasets and folders on their way to a bucket, through restarts and weeks without a network.

Everything is persisted before it is done, so a call that was killed anywhere is simply made again. Objects are
written once: nothing is overwritten or deleted, ever, and what tells of other files is sent after them.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from brain_service.cloud.freeze import Frozen, freeze_dataset, freeze_folder
from brain_service.cloud.names import split_place
from brain_service.cloud.objects import Bucket
from brain_service.cloud.patience import (
    OfflineError,
    Patience,
    RetryPolicy,
    ShouldStop,
    check_stop,
    park_s,
    wait_for_lock,
)
from brain_service.cloud.schedule import Bandwidth, QuietHours
from brain_service.cloud.storage import Progress
from brain_service.cloud.transfer import Transfer
from brain_service.cloud.upload_table import QueuedFile, UploadTable, UploadView
from brain_service.episodes.uploads import note_uploaded
from brain_service.errors import BrainError, CancelledJobError, InvalidError, UnavailableError
from brain_service.settings import CloudSettings

__all__ = ["OfflineError", "UploadProgress", "UploadQueue", "UploadReport", "UploadView"]

UploadProgress = Callable[[int, int, str], None]
"""Told of the bytes that are there, of all of them, and of the file that is sent."""


@dataclass(frozen=True, slots=True)
class UploadReport:
    """What one call of `work` did: `sent` files went over the wire, `skipped` ones did not.

    They were there already, or the service copied those of another version.
    """

    upload_id: str
    location: str
    sent: int
    skipped: int
    sent_bytes: int
    size_bytes: int
    retries: int
    duration_s: float

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON-ready mapping."""
        return asdict(self)


class UploadQueue:
    """Uploads in `database`, the daemon's `brain.db`. Blocking; several processes may share the file.

    One upload at a time is worked on, whoever does it; another call waits for its turn.
    """

    def __init__(
        self,
        database: Path,
        settings: CloudSettings,
        *,
        policy: RetryPolicy | None = None,
        bandwidth: Bandwidth | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """Open the queue; `policy`, `bandwidth` and `now` (local time) replace what the settings say in tests.

        Raises:
            ConfigError: the file cannot be opened, or a setting is wrong.
        """
        self._settings = settings
        self._policy = policy or RetryPolicy()
        self._quiet = QuietHours.parse(settings.quiet_hours)
        cap = settings.upload_bytes_per_s
        self._bandwidth = bandwidth or (Bandwidth(cap) if cap is not None else None)
        self._now = now
        self._path = database
        self._table = UploadTable(database)

    def close(self) -> None:
        """Close the file."""
        self._table.close()

    def __enter__(self) -> "UploadQueue":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_dataset(
        self,
        folder: Path,
        destination: str,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> str:
        """Freeze a dataset version and queue it for `<destination>/<name>/<version>/<file>`; return the id.

        Content and place decide the id: adding twice is one upload. Reads every byte.

        Raises:
            NotFoundError: there is no such folder.
            CorruptDataError: a shard is missing or not what the manifest says.
            InvalidError: the destination is no `gs://bucket/prefix`, or a name that a bucket cannot hold.
            CancelledJobError: it was asked to stop.
            UnavailableError: the medium cannot read, or the queue cannot be written.
        """
        _require_bucket(destination)
        return self._add(freeze_dataset(folder.absolute(), progress, should_stop), destination)

    def add_folder(
        self,
        folder: Path,
        destination: str,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> str:
        """Freeze all files below a folder and queue them for `<destination>/<file>`; return the upload's id.

        Raises:
            BrainError: as `add_dataset`.
        """
        _require_bucket(destination)
        return self._add(freeze_folder(folder.absolute(), progress, should_stop), destination)

    def _add(self, frozen: Frozen, destination: str) -> str:
        return self._table.add(frozen, "/".join(filter(None, (destination.rstrip("/"), frozen.path))))

    def view(self, upload_id: str) -> UploadView:
        """Return one upload.

        Raises:
            NotFoundError: there is none of this id.
        """
        return self._table.view(upload_id)

    def list(self) -> tuple[UploadView, ...]:
        """Return all uploads, oldest first."""
        return self._table.views()

    def work(
        self, upload_id: str, progress: UploadProgress | None = None, should_stop: ShouldStop | None = None
    ) -> UploadReport:
        """Bring an upload to its end, from wherever an earlier call stopped. What is done already costs nothing.

        Raises:
            OfflineError: no network for longer than a call waits, or quiet hours; come again in `retry_after_s`.
            CancelledJobError: it was asked to stop; the same call goes on from there.
            NotFoundError: there is no such upload, or no such bucket.
            CorruptDataError: a file changed after it was queued, or is gone.
            ConflictError: another object has a file's name.
            UnauthorizedError, ForbiddenError, TooManyError, ConfigError: credentials, rights, quota: says what to
                change.
        """
        self._table.view(upload_id)
        with self._turn(should_stop):
            view = self._table.view(upload_id)
            try:
                report = self._work(view, progress, should_stop)
            except CancelledJobError:
                raise
            except OfflineError as error:
                raise self._park(view, error) from error
            except UnavailableError:
                # Not the network's doing but this machine's: the database, or the medium.
                raise
            except BrainError as error:
                self._table.set_state(upload_id, "failed", attempts=view.attempts, error=error)
                raise
            note_uploaded(self._path, self._table.logs(upload_id))
            self._table.set_state(upload_id, "done")
            return report

    def _park(self, view: UploadView, error: OfflineError) -> OfflineError:
        """Note that the network is away, and return the error with the time at which to come again."""
        if error.members.get("quiet_hours"):
            self._table.set_state(view.upload_id, "waiting", wait_s=error.retry_after_s, error=error)
            return error
        wait_s = max(error.retry_after_s, park_s(view.attempts))
        parked = OfflineError(error.detail, retry_after_s=wait_s)
        # Somebody got through since: what moved on is no failure in a row.
        moved = self._table.view(view.upload_id).done_bytes > view.done_bytes
        attempts = 1 if moved else view.attempts + 1
        self._table.set_state(view.upload_id, "waiting", attempts=attempts, wait_s=wait_s, error=parked)
        return parked

    def _work(
        self, view: UploadView, progress: UploadProgress | None, should_stop: ShouldStop | None
    ) -> UploadReport:
        begun_s = time.monotonic()
        split = split_place(view.location)
        assert split is not None, view.location
        bucket, prefix = Bucket(self._settings, split[0]), split[1]
        patience = Patience(self._policy, should_stop)
        sent = skipped = sent_bytes = done_bytes = 0

        def gate() -> None:
            check_stop(should_stop)
            self._require_loud()

        with contextlib.closing(bucket):
            for queued in self._table.files(view.upload_id):
                name = queued.frozen.file
                journal = _Journal(self._table, view, queued, done_bytes, progress)
                if queued.done:
                    skipped += 1
                else:
                    twin = self._table.twin(queued.frozen, bucket.name)
                    transfer = Transfer(
                        bucket,
                        f"{prefix}/{name}".lstrip("/"),
                        Path(view.folder, name),
                        queued.frozen,
                        journal,
                        patience,
                        gate,
                        self._settings.chunk_bytes,
                        self._bandwidth,
                        twin and twin.removeprefix(f"gs://{bucket.name}/"),
                    )
                    went = transfer.run(queued)
                    self._table.set_file_done(view.upload_id, name)
                    sent, skipped, sent_bytes = sent + went, skipped + (not went), sent_bytes + transfer.sent_bytes
                done_bytes += queued.frozen.size_bytes
                journal.report(queued.frozen.size_bytes)
        duration_s = time.monotonic() - begun_s
        return UploadReport(
            view.upload_id, view.location, sent, skipped, sent_bytes, done_bytes, patience.waits, duration_s
        )

    def _require_loud(self) -> None:
        """Send nothing in quiet hours.

        Raises:
            OfflineError: these are; it says when they end.
        """
        wait_s = 0.0 if self._quiet is None else self._quiet.wait_s(self._now())
        if wait_s:
            raise OfflineError(
                f"quiet hours ({self._settings.quiet_hours}); the upload goes on in {wait_s / 60:.0f} minutes",
                retry_after_s=wait_s,
                quiet_hours=True,
            )

    @contextlib.contextmanager
    def _turn(self, should_stop: ShouldStop | None) -> Iterator[None]:
        """Hold the lock of whoever uploads; a killed holder's is free at once.

        Raises:
            CancelledJobError: it was asked to stop while it waited.
            UnavailableError: the lock file cannot be made.
        """
        path = self._path.with_name(f"{self._path.name}.uploading")
        try:
            file = path.open("ab")
        except OSError as error:
            raise UnavailableError(f"cannot open {path}: {error.strerror}; check its folder") from error
        with file:
            wait_for_lock(file, should_stop)
            yield


class _Journal:
    """A file's progress, kept in the table and told to whoever listens."""

    def __init__(
        self,
        table: UploadTable,
        view: UploadView,
        queued: QueuedFile,
        before_bytes: int,
        progress: UploadProgress | None,
    ) -> None:
        self._table = table
        self._view = view
        self._file = queued.frozen.file
        self._before_bytes = before_bytes
        self._progress = progress

    def session(self, address: str | None) -> None:
        """Keep a session's address, durably."""
        self._table.set_session(self._view.upload_id, self._file, address)

    def offset(self, offset_bytes: int) -> None:
        """Keep an offset."""
        self._table.set_offset(self._view.upload_id, self._file, offset_bytes)
        self.report(offset_bytes)

    def report(self, offset_bytes: int) -> None:
        """Tell how far the whole upload is."""
        if self._progress is not None:
            self._progress(self._before_bytes + offset_bytes, self._view.size_bytes, self._file)


def _require_bucket(destination: str) -> None:
    if split_place(destination) is None:
        raise InvalidError(f"destination {destination!r}: use gs://bucket/prefix", field="destination")
