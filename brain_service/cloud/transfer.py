"""One frozen file becomes one object: in one request if it is small, else in a session that outlives this process.

An object is final only with its last chunk, and that is sent once the whole file has shown the checksum that was
frozen. The service holds the bytes against the same checksum, and its answer is checked again here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from brain_service.cloud.freeze import FrozenFile
from brain_service.cloud.objects import Bucket, Stored, crc32c_text
from brain_service.cloud.patience import OfflineError, Patience
from brain_service.cloud.schedule import Bandwidth, metered
from brain_service.cloud.upload_table import QueuedFile
from brain_service.errors import (
    BrainError,
    ConflictError,
    CorruptDataError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)

__all__ = ["Journal", "Transfer"]

_MOST_SESSIONS = 4
_PARK_S = 300.0
# A smaller file is sent in the time that asking for a copy takes.
_COPIED_BYTES = 64 * 1024


class Journal(Protocol):
    """Where a file's progress is kept; durable before it returns, but for the offset."""

    def session(self, address: str | None) -> None:
        """Note a session that began, or that there is none any more."""
        ...

    def offset(self, offset_bytes: int) -> None:
        """Note how much of the file the service has."""
        ...


@dataclass(slots=True)
class _Checked:
    """CRC-32C of the first `offset_bytes` bytes of the local file, as they were read."""

    offset_bytes: int = 0
    crc32c: int = 0


class Transfer:
    """The upload of one file. `gate` is called before each chunk and may raise; `patience` bounds the tries.

    `sent_bytes` counts what went over the wire and was taken.
    """

    def __init__(
        self,
        bucket: Bucket,
        target: str,
        path: Path,
        frozen: FrozenFile,
        journal: Journal,
        patience: Patience,
        gate: Callable[[], None],
        chunk_bytes: int,
        bandwidth: Bandwidth | None = None,
        twin: str | None = None,
    ) -> None:
        """`twin` names an object of the same content: versions of a dataset share most of their shards."""
        self.sent_bytes = 0
        self._bucket = bucket
        self._target = target
        self._path = path
        self._frozen = frozen
        self._journal = journal
        self._patience = patience
        self._gate = gate
        self._chunk_bytes = chunk_bytes
        self._bandwidth = bandwidth
        self._twin = twin
        self._session: str | None = None
        # A session that this process began is known to stand at its last answer; any other one is asked.
        self._known: int | None = None
        self._sessions = 0
        self._checked = _Checked()

    @property
    def place(self) -> str:
        """The object's place as a user would type it."""
        return self._bucket.place(self._target)

    def run(self, queued: QueuedFile) -> bool:
        """Bring the file there and return whether any of it had to be sent; False where it was there already.

        Raises:
            CorruptDataError: the local file is gone or is not what was frozen.
            ConflictError: something else has the name; it is left as it is.
            OfflineError: no answer after several tries.
            BrainError: as `answers` describes, where the service refuses.
        """
        self._session = queued.session
        while True:
            try:
                self._gate()
                return self._attempt()
            except ConflictError:
                # Its name is taken: by this very file, if only an answer was lost.
                there = self._patience.call(lambda: self._bucket.stat(self._target))
                if there is not None:
                    self._require_same(there)
                    return self.sent_bytes > 0
                self._forget()
                self._patience.wait(
                    UnavailableError(f"{self.place}: the service says both that it is there and not")
                )
            except UnavailableError as error:
                self._known = None
                self._patience.wait(error)

    def _attempt(self) -> bool:
        self._require_size()
        if self._session is None and self._twin is not None and self._copy(self._twin):
            return False
        if self._frozen.size_bytes <= self._chunk_bytes:
            self._send_whole()
            return True
        if self._session is None:
            if self._is_there():
                return False
            self._begin()
        try:
            self._send_chunks()
        except NotFoundError as error:
            # A session lives a week. That the bucket is there, the next one's beginning will tell.
            self._forget()
            raise UnavailableError(f"{self.place}: the upload session is gone; another one begins") from error
        return True

    def _copy(self, twin: str) -> bool:
        """Have the service make the object of its twin, and return whether it is there now."""
        if self._frozen.size_bytes < _COPIED_BYTES:
            return False
        try:
            if self._is_there():
                return True
            there = self._bucket.stat(twin)
            if there is None or not self._is_same(there):
                return False
            stored = self._bucket.copy(twin, self._target)
        except (NotFoundError, ForbiddenError, InvalidError):
            return False
        self._require_stored(stored)
        return True

    def _send_whole(self) -> None:
        with self._open() as file:
            data = file.read(self._chunk_bytes + 1)
        self._require_content(crc32c_text(_crc32c(0, data)))
        if self._bandwidth is not None and (wait_s := self._bandwidth.take(len(data))):
            self._patience.pause(wait_s)
        stored = self._bucket.insert(self._target, data, crc32c=self._frozen.crc32c, metadata=self._metadata())
        self.sent_bytes += len(data)
        self._require_stored(stored)

    def _is_there(self) -> bool:
        """Tell whether this very file is there, so that no byte of it is sent in vain.

        Raises:
            ConflictError: something else is.
        """
        try:
            there = self._bucket.stat(self._target)
        except ForbiddenError:
            # An account that may only create is enough: the session's conditions tell.
            return False
        if there is not None:
            self._require_same(there)
        return there is not None

    def _begin(self) -> None:
        self._session = self._bucket.begin(
            self._target, self._frozen.size_bytes, crc32c=self._frozen.crc32c, metadata=self._metadata()
        )
        self._journal.session(self._session)
        self._known = 0

    def _forget(self) -> None:
        """Give a session up; not for ever, since each one may cost the whole file again.

        Raises:
            OfflineError: it was the last one of this call.
        """
        self._session, self._known = None, None
        self._journal.session(None)
        self._sessions += 1
        if self._sessions == _MOST_SESSIONS:
            raise OfflineError(
                f"{self.place}: {_MOST_SESSIONS} upload sessions were lost; look at the bucket and the link",
                retry_after_s=_PARK_S,
            )

    def _send_chunks(self) -> None:
        assert self._session is not None
        size_bytes = self._frozen.size_bytes
        offset: int | Stored = (
            self._bucket.offset(self._session, self._target, size_bytes) if self._known is None else self._known
        )
        with self._open() as file:
            while not isinstance(offset, Stored):
                self._check_until(file, offset)
                self._journal.offset(offset)
                self._gate()
                offset = self._send_chunk(file, offset)
        self._require_stored(offset)

    def _send_chunk(self, file: IO[bytes], offset: int) -> int | Stored:
        """Send the next chunk, the last one only if the whole file has shown its checksum."""
        assert self._session is not None
        size_bytes = self._frozen.size_bytes
        file.seek(offset)
        data = file.read(min(self._chunk_bytes, size_bytes - offset))
        stop = offset + len(data)
        if not data:
            raise self._changed()
        crc32c = _crc32c(self._checked.crc32c, data)
        if stop == size_bytes:
            self._require_content(crc32c_text(crc32c))
        body = data if self._bandwidth is None else metered(data, self._bandwidth, self._patience.pause)
        try:
            answer = self._bucket.send(self._session, self._target, body, offset, size_bytes)
        except InvalidError as error:
            # Above all: what arrived does not have the checksum that was announced.
            self._forget()
            raise UnavailableError(f"{error.detail}; the session is given up, another one begins") from error
        if isinstance(answer, Stored):
            self.sent_bytes += len(data)
            return answer
        if not offset <= answer <= stop:
            # It may have been another process's chunk; what the service has is asked anew.
            raise UnavailableError(f"{self.place}: the service has {answer} bytes after bytes {offset} to {stop}")
        self.sent_bytes += answer - offset
        if answer > offset:
            self._patience.reset()
        else:
            self._patience.wait(UnavailableError(f"{self.place}: the service takes no bytes"))
        if answer == stop:
            self._checked = _Checked(stop, crc32c)
        self._known = answer
        return answer

    def _check_until(self, file: IO[bytes], offset: int) -> None:
        """Read the local bytes that the service has and that were not read yet: they count for the checksum."""
        if offset < self._checked.offset_bytes:
            self._checked = _Checked()
        file.seek(self._checked.offset_bytes)
        while self._checked.offset_bytes < offset:
            self._gate()
            data = file.read(min(self._chunk_bytes, offset - self._checked.offset_bytes))
            if not data:
                raise self._changed()
            self._checked = _Checked(self._checked.offset_bytes + len(data), _crc32c(self._checked.crc32c, data))

    def _require_stored(self, stored: Stored | None) -> None:
        """Hold what the service says it stored against what was frozen; asked again while it differs.

        Raises:
            OfflineError: it differs still; nothing is deleted.
        """
        while stored is None or not self._is_same(stored):
            found = "nothing" if stored is None else f"{stored.size_bytes} bytes with CRC-32C {stored.crc32c}"
            self._patience.wait(
                UnavailableError(
                    f"{self.place}: the service says it has {found}, sent were {self._frozen.size_bytes} with "
                    f"{self._frozen.crc32c}; nothing was deleted. Look at the object, remove it if it is damaged"
                )
            )
            stored = self._bucket.stat(self._target)

    def _require_same(self, there: Stored) -> None:
        if not self._is_same(there):
            raise ConflictError(
                f"{self.place} is there with another content ({there.size_bytes} bytes, CRC-32C {there.crc32c}; "
                f"the file has {self._frozen.size_bytes}, {self._frozen.crc32c}); nothing was overwritten or "
                "deleted. Upload under another prefix, or look at the object and remove it"
            )

    def _is_same(self, there: Stored) -> bool:
        return (there.size_bytes, there.crc32c) == (self._frozen.size_bytes, self._frozen.crc32c)

    def _require_size(self) -> None:
        with self._open() as file:
            if file.seek(0, 2) != self._frozen.size_bytes:
                raise self._changed()

    def _require_content(self, crc32c: str) -> None:
        if crc32c != self._frozen.crc32c:
            raise self._changed()

    def _changed(self) -> BrainError:
        return CorruptDataError(
            f"{self._path} changed after it was queued; nothing of it can be seen in the bucket. Restore it, or "
            "convert again and upload the new version",
            file=self._frozen.file,
        )

    def _open(self) -> IO[bytes]:
        try:
            return self._path.open("rb")
        except OSError as error:
            raise CorruptDataError(
                f"{self._path}: {error.strerror}; it was there when the upload was queued. Restore it, or upload "
                "another version",
                file=self._frozen.file,
            ) from error

    def _metadata(self) -> dict[str, str]:
        return {"sha256": self._frozen.sha256}


def _crc32c(crc32c: int, data: bytes) -> int:
    import google_crc32c

    return int(google_crc32c.extend(crc32c, data))
