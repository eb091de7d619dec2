"""Where a robot fetches a run's files from: a bucket (`gs://`), or a folder on this machine, by name.

Remote ── FolderRemote   files
      └── BucketRemote   objects, over the JSON API; a call that gets no answer is repeated for about half a minute

Datasets and runs are written through `datasets.places`, which needs gcsfs; this needs nothing beyond the robot's
own packages, and a download goes on where a killed one stopped.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from brain_service.cloud.fetch import Fetch
from brain_service.cloud.names import check_name, split_place
from brain_service.cloud.objects import BEYOND, Bucket, crc32c_text
from brain_service.cloud.patience import Patience, RetryPolicy, ShouldStop, check_stop
from brain_service.errors import NotFoundError, TooLargeError, UnavailableError
from brain_service.settings import CloudSettings

__all__ = ["BucketRemote", "FolderRemote", "Progress", "Remote", "open_remote"]

_POLICY = RetryPolicy()
MAX_READ_BYTES = 256 * 1024**2
Progress = Callable[[int, int], None]
"""Told of bytes that are there, and of all of them."""


class Remote(Protocol):
    """A folder of files by name (`a/b`). Blocking; one thread at a time. Errors name the file's full place.

    Raises, in every method:
        UnavailableError: it cannot be reached now; OfflineError after several tries.
        ForbiddenError, UnauthorizedError, ConfigError: the service refuses; says what to change.
        InvalidError: a name leads out of the place.
    """

    @property
    def location(self) -> str:
        """Where it is, as a user would type it."""
        ...

    def read(self, name: str, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """Return a whole file.

        Raises:
            NotFoundError: there is none.
            TooLargeError: it is longer than `max_bytes`.
        """
        ...

    def download(
        self,
        name: str,
        to: Path,
        size_bytes: int | None = None,
        sha256: str | None = None,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> None:
        """Write a file to `to`, whole or not at all; what a killed call fetched is kept and used.

        Nothing is fetched where `to` has the size and the digest already.

        Raises:
            NotFoundError: there is none.
            CorruptDataError: it has another size or digest.
            CancelledJobError: it was asked to stop.
        """
        ...


@dataclass(frozen=True)
class FolderRemote:
    """A folder on this machine."""

    path: Path

    @property
    def location(self) -> str:
        """Its path."""
        return str(self.path)

    def read(self, name: str, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """Return a whole file; see `Remote`."""
        with self._reaching(name), self._file(name).open("rb") as file:
            data = file.read(max_bytes + 1)
        _require_short(len(data), max_bytes, str(self._file(name)))
        return data

    def download(
        self,
        name: str,
        to: Path,
        size_bytes: int | None = None,
        sha256: str | None = None,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> None:
        """Copy a file; see `Remote`."""

        def opened(start_byte: int) -> Generator[bytes, None, None]:
            with self._reaching(name), self._file(name).open("rb") as file:
                file.seek(start_byte)
                while piece := file.read(256 * 1024):
                    yield piece

        source = str(self._file(name))
        Fetch(source, to, size_bytes, sha256, progress, lambda: check_stop(should_stop)).run(opened)

    def _file(self, name: str) -> Path:
        return self.path / check_name(name, self.location)

    @contextlib.contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"{self._file(name)} does not exist") from error
        except OSError as error:
            raise UnavailableError(f"{self._file(name)}: {error.strerror}; check space and permissions") from error


@dataclass(frozen=True)
class BucketRemote:
    """A folder below a bucket; `path` is without a slash at its ends, empty for the bucket itself."""

    bucket: Bucket = field(repr=False)
    path: str
    policy: RetryPolicy = _POLICY

    @property
    def location(self) -> str:
        """`gs://bucket/path`."""
        return self.bucket.place(self.path).rstrip("/")

    def read(self, name: str, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """Return a whole object, checked against the service's CRC-32C; see `Remote`."""
        place = self.bucket.place(self._object(name))

        def once() -> bytes:
            with self.bucket.open(self._object(name)) as answer:
                data = bytearray()
                for piece in self.bucket.pieces(answer, place):
                    data += piece
                    _require_short(len(data), max_bytes, place)
                _check_crc(answer, data, place)
                return bytes(data)

        return Patience(self.policy).call(once)

    def download(
        self,
        name: str,
        to: Path,
        size_bytes: int | None = None,
        sha256: str | None = None,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> None:
        """Fetch an object; see `Remote`.

        Raises:
            UnavailableError: the service ignores ranges, so that nothing can be gone on with.
        """
        place = self.bucket.place(self._object(name))
        patience = Patience(self.policy, should_stop)

        def opened(start_byte: int) -> Generator[bytes, None, None]:
            with self.bucket.open(self._object(name), start_byte) as answer:
                if answer.status_code == BEYOND:
                    return
                if start_byte and answer.status_code != 206:
                    raise UnavailableError(f"{place}: the service ignores ranges; remove {to}.part and try again")
                for piece in self.bucket.pieces(answer, place):
                    patience.reset()
                    yield piece

        file = Fetch(place, to, size_bytes, sha256, progress, lambda: check_stop(should_stop))
        patience.call(lambda: file.run(opened))

    def _object(self, name: str) -> str:
        return f"{self.path}/{check_name(name, self.location)}".lstrip("/")


def _require_short(length: int, max_bytes: int, place: str) -> None:
    if length > max_bytes:
        raise TooLargeError(f"{place} is longer than the {max_bytes} bytes that are read at once")


def _check_crc(answer: Any, data: bytearray, place: str) -> None:
    from google_crc32c import value

    hashes = dict(part.strip().split("=", 1) for part in answer.headers.get("X-Goog-Hash", "").split(",") if part)
    if "crc32c" in hashes and hashes["crc32c"] != crc32c_text(value(bytes(data))):
        raise UnavailableError(f"{place}: what arrived does not fit its checksum; it was damaged on the way")


def open_remote(text: str | Path, settings: CloudSettings, policy: RetryPolicy = _POLICY) -> Remote:
    """Return the place at `gs://bucket/path` or a local path; it need not exist, and nothing is asked yet.

    `policy` says how often a call that gets no answer is repeated.

    Raises:
        InvalidError: the text has another scheme, or names no bucket.
    """
    split = split_place(text)
    if split is None:
        return FolderRemote(Path(text).expanduser().absolute())
    bucket, path = split
    return BucketRemote(Bucket(settings, bucket), path, policy)
