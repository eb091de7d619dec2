"""Where a dataset lies: a folder on disk or below a bucket (`gs://`), read by byte ranges.

Folder ── LocalFolder   files, `pread`
      └── GcsFolder     objects, ranges over gcsfs: neighbours merged, many at once, retried
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from brain_service.errors import (
    ConfigError,
    CorruptDataError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)

__all__ = [
    "GCS",
    "Folder",
    "GcsFolder",
    "LocalFolder",
    "Range",
    "gcs_file_system",
    "merge_ranges",
    "open_folder",
    "reaching_gcs",
]

GCS = "gs://"

# A request costs about as much time as this many bytes, so a smaller gap is read along.
_GAP_BYTES = 256 * 1024
_MERGED_BYTES = 8 * 1024**2
# What gcsfs sends is retried by gcsfs itself: 6 times over about half a minute, on 408, 429, 5xx and broken links.


class Range(NamedTuple):
    """`size_bytes` bytes of `file` from `start_byte` on."""

    file: str
    start_byte: int
    size_bytes: int


@runtime_checkable
class Folder(Protocol):
    """A folder of immutable files. Errors name the file's full place."""

    @property
    def location(self) -> str:
        """Where it is, as a user would type it."""
        ...

    def child(self, name: str) -> "Folder":
        """Return the folder `name` inside this one, whether it exists or not."""
        ...

    def subfolders(self) -> list[str]:
        """Return the names of the folders in it; empty where it does not exist."""
        ...

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file in it; empty where it does not exist."""
        ...

    def read(self, file: str) -> bytes:
        """Return a whole file.

        Raises:
            NotFoundError: there is none.
            UnavailableError: it cannot be read now.
        """
        ...

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of each range, in order; fewer than asked for where a file ends early.

        Raises:
            CorruptDataError: a file is gone.
            UnavailableError: it cannot be read now.
        """
        ...


@dataclass(frozen=True)
class LocalFolder:
    """A folder on this machine."""

    path: Path

    @property
    def location(self) -> str:
        """Its path."""
        return str(self.path)

    def child(self, name: str) -> "LocalFolder":
        """Return the folder `name` inside."""
        return LocalFolder(self.path / name)

    def subfolders(self) -> list[str]:
        """Return the names of the folders in it."""
        return sorted(entry.name for entry in self._entries() if entry.is_dir())

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file in it."""
        found = {}
        for entry in self._entries():
            # A converter's temporary files come and go beside the versions.
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file():
                    found[entry.name] = entry.stat().st_size
        return found

    def _entries(self) -> list["os.DirEntry[str]"]:
        try:
            with os.scandir(self.path) as entries:
                return list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UnavailableError(f"{self.path}: {error.strerror}; check its permissions") from error

    def read(self, file: str) -> bytes:
        """Return a whole file.

        Raises:
            NotFoundError: there is none.
            UnavailableError: it cannot be read.
        """
        try:
            return (self.path / file).read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"{self.path / file} does not exist") from error
        except OSError as error:
            raise UnavailableError(f"{self.path / file}: {error.strerror}") from error

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of each range, in order. Each file is opened once and read from its start to its end.

        Raises:
            CorruptDataError: a file is gone.
        """
        found = [b""] * len(ranges)
        name, descriptor = "", -1
        try:
            for index in sorted(range(len(ranges)), key=ranges.__getitem__):
                file, start_byte, size_bytes = ranges[index]
                if file != name:
                    if descriptor >= 0:
                        os.close(descriptor)
                        descriptor = -1
                    descriptor, name = os.open(self.path / file, os.O_RDONLY | os.O_CLOEXEC), file
                found[index] = os.pread(descriptor, size_bytes, start_byte)
        except OSError as error:
            raise CorruptDataError(
                f"{self.path / file}: {error.strerror}; restore it or convert the episodes again", file=file
            ) from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return found


@dataclass(frozen=True)
class GcsFolder:
    """A folder below a bucket of Google Cloud Storage. Picklable: a worker process connects by itself."""

    location: str
    """`gs://bucket/path` without a slash at its end."""

    def child(self, name: str) -> "GcsFolder":
        """Return the folder `name` inside."""
        return GcsFolder(f"{self.location}/{name}")

    def subfolders(self) -> list[str]:
        """Return the names of the folders in it.

        Raises:
            ForbiddenError: the service refuses these credentials.
            UnavailableError: it cannot be reached.
        """
        return sorted(_last(entry["name"]) for entry in self._list() if entry["type"] == "directory")

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each object in it: one listing, whatever their number.

        Raises:
            ForbiddenError: the service refuses these credentials.
            UnavailableError: it cannot be reached.
        """
        return {_last(entry["name"]): int(entry["size"]) for entry in self._list() if entry["type"] == "file"}

    def _list(self) -> list[dict[str, Any]]:
        system = gcs_file_system()
        try:
            with reaching_gcs(self.location):
                # Never from gcsfs's cache of listings: it would hide a version that was uploaded since.
                found: list[dict[str, Any]] = system.ls(self.location, detail=True, refresh=True)
        except FileNotFoundError:
            return []
        return found

    def read(self, file: str) -> bytes:
        """Return a whole object.

        Raises:
            NotFoundError: there is no such bucket or object.
            ForbiddenError: the service refuses these credentials.
            UnavailableError: it cannot be reached.
        """
        place, system = f"{self.location}/{file}", gcs_file_system()
        try:
            with reaching_gcs(place):
                data: bytes = system.cat_file(place)
        except FileNotFoundError as error:
            raise NotFoundError(f"{place} does not exist; check the bucket and the path") from error
        return data

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of each range: neighbours are merged, and what remains is requested at once.

        Raises:
            CorruptDataError: an object is gone.
            ForbiddenError: the service refuses these credentials.
            UnavailableError: it cannot be reached.
        """
        merged, system = merge_ranges(ranges), gcs_file_system()
        places = [f"{self.location}/{part.file}" for part in merged]
        starts = [part.start_byte for part in merged]
        stops = [part.start_byte + part.size_bytes for part in merged]
        try:
            with reaching_gcs(self.location):
                pieces: list[bytes] = system.cat_ranges(places, starts, stops, on_error="raise")
        except FileNotFoundError as error:
            raise CorruptDataError(
                f"{self.location}: {error} is gone; upload it again or convert the episodes again"
            ) from error
        return _cut(ranges, merged, pieces)


def merge_ranges(ranges: Iterable[Range]) -> list[Range]:
    """Return ranges that cover the given ones: those of a file with little between them become one."""
    merged: list[Range] = []
    for part in sorted(set(ranges)):
        stop = part.start_byte + part.size_bytes
        if merged and merged[-1].file == part.file:
            last = merged[-1]
            whole = max(stop, last.start_byte + last.size_bytes) - last.start_byte
            gap = part.start_byte - last.start_byte - last.size_bytes
            if gap <= 0 or (gap <= _GAP_BYTES and whole <= _MERGED_BYTES):
                merged[-1] = Range(part.file, last.start_byte, whole)
                continue
        merged.append(part)
    return merged


def _cut(ranges: Sequence[Range], merged: Sequence[Range], pieces: Sequence[bytes]) -> list[bytes]:
    """Cut what was asked for out of what was read."""
    holders = list(zip(merged, pieces, strict=True))  # in the order of the ranges' places
    order = sorted(range(len(ranges)), key=lambda index: ranges[index])
    found = [b""] * len(ranges)
    at = 0
    for index in order:
        part = ranges[index]
        while at + 1 < len(holders) and holders[at + 1][0][:2] <= part[:2]:
            at += 1
        start = part.start_byte - holders[at][0].start_byte
        found[index] = holders[at][1][start : start + part.size_bytes]
    return found


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]


@contextlib.contextmanager
def reaching_gcs(place: str) -> Iterator[None]:
    """Turn what one call of gcsfs raises into an error of ours; a missing object is the caller's matter.

    Raises:
        FileNotFoundError: there is no such object.
        ForbiddenError: these credentials may not do that.
        UnavailableError: anything else went wrong.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        # gcsfs tells a 403 by a bare OSError with this word, a 401 by its own class with the code.
        if str(error).startswith("Forbidden") or getattr(error, "code", None) == 401:
            reason = " ".join(str(error).split())
            raise ForbiddenError(
                f"{place}: {reason}; give the job's account the right to the bucket "
                "(roles/storage.objectUser), or use other credentials"
            ) from error
        # Its own failures, those of aiohttp, requests and google.auth, bare ValueErrors and RuntimeErrors: they
        # have no root in common, and nothing but its call stands in the block.
        raise UnavailableError(
            f"{place}: {type(error).__name__}: {error}; check the network, the credentials "
            "(gcloud auth application-default login) and the right to read the bucket"
        ) from error


@cache
def gcs_file_system() -> Any:
    """Return the connection of this process.

    Raises:
        ConfigError: gcsfs is not installed; names the extra.
    """
    try:
        # Not the package's own name for it: that one first asks a control service over gRPC for the kind of each
        # bucket, which takes another permission and which no emulator answers. Objects are read the same.
        from gcsfs.core import GCSFileSystem
    except ImportError as error:
        raise ConfigError("gs:// needs gcsfs: pip install 'continuon-brain[gcs]'") from error
    # Credentials, and the address of an emulator, are gcsfs's own settings: it reads them from its environment.
    return GCSFileSystem()


def open_folder(place: str | Path) -> Folder:
    """Return the folder at a local path or at `gs://bucket/path`; it need not exist.

    Raises:
        InvalidError: the place has another scheme, or names no bucket.
    """
    text = str(place)
    if isinstance(place, Path) and text.startswith("gs:/"):
        # A Path takes the second slash away.
        text = GCS + text.removeprefix("gs:/")
    if text.startswith(GCS):
        if not text.removeprefix(GCS).strip("/"):
            raise InvalidError(f"{text} names no bucket; use gs://bucket/path", field="path")
        return GcsFolder(text.rstrip("/"))
    if "://" in text:
        raise InvalidError(f"{text}: datasets lie on local paths or gs://bucket/path", field="path")
    return LocalFolder(Path(place))
