"""A folder that a run writes to, on this machine or below a bucket (`gs://`); a file in it is replaced whole.

Place ── LocalPlace   temporary file, fsync, rename
      └── GcsPlace    one upload an object, which the service makes visible whole
"""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from brain_service.datasets.storage import GCS, gcs_file_system, open_folder, reaching_gcs
from brain_service.durable import make_directory, write_atomic
from brain_service.errors import NotFoundError, UnavailableError

__all__ = ["GcsPlace", "LocalPlace", "Place", "open_place"]


@runtime_checkable
class Place(Protocol):
    """A folder; it need not exist. `name` may hold slashes: it is the path of a file or folder in it."""

    @property
    def location(self) -> str:
        """Where it is, as a user would type it."""
        ...

    def child(self, name: str) -> "Place":
        """Return the folder `name` inside."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return a whole file, None where there is none.

        Raises:
            ForbiddenError: these credentials may not read there.
            UnavailableError: it cannot be read now.
        """
        ...

    def write(self, name: str, data: bytes) -> None:
        """Put a file there, or replace it; a reader sees the old or the new one whole.

        Raises:
            NotFoundError: there is no such bucket.
            ForbiddenError: these credentials may not write there.
            UnavailableError: it cannot be written now.
        """
        ...

    def stamps(self) -> dict[str, str]:
        """Return for every file below, by its path, a text that changes with its bytes.

        On this machine that is the SHA-256 of what is read; on a bucket CRC-32C and size as the service keeps
        them, of which nothing is read.

        Raises:
            ForbiddenError: these credentials may not read there.
            UnavailableError: it cannot be read now.
        """
        ...

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with all that is in it; what is not there is no error.

        Raises:
            ForbiddenError: these credentials may not delete there.
            UnavailableError: it cannot be deleted now.
        """
        ...


@dataclass(frozen=True)
class LocalPlace:
    """A folder on this machine."""

    path: Path

    @property
    def location(self) -> str:
        """Its path."""
        return str(self.path)

    def child(self, name: str) -> "LocalPlace":
        """Return the folder `name` inside."""
        return LocalPlace(self.path / name)

    def read(self, name: str) -> bytes | None:
        """Return a whole file, None where there is none.

        Raises:
            UnavailableError: it cannot be read.
        """
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UnavailableError(f"{self.path / name}: {error.strerror}; check its permissions") from error

    def write(self, name: str, data: bytes) -> None:
        """Put a file there, or replace it.

        Raises:
            UnavailableError: the medium is full or read-only.
        """
        path = self.path / name
        try:
            make_directory(path.parent)
            write_atomic(path, data)
        except OSError as error:
            raise UnavailableError(
                f"{path}: {error.strerror}; make room, or choose another output directory"
            ) from error

    def stamps(self) -> dict[str, str]:
        """Return the SHA-256 of every file below.

        Raises:
            UnavailableError: one cannot be read.
        """
        try:
            files = sorted(path for path in self.path.rglob("*") if path.is_file())
            return {
                path.relative_to(self.path).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in files
            }
        except OSError as error:
            raise UnavailableError(f"{self.path}: {error}; check its permissions") from error

    def delete(self, name: str) -> None:
        """Delete a file or a folder.

        Raises:
            UnavailableError: the medium refuses.
        """
        path = self.path / name
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UnavailableError(f"{path}: {error}; check its permissions") from error


@dataclass(frozen=True)
class GcsPlace:
    """A folder below a bucket of Google Cloud Storage."""

    location: str
    """`gs://bucket/path` without a slash at its end."""

    def child(self, name: str) -> "GcsPlace":
        """Return the folder `name` inside."""
        return GcsPlace(f"{self.location}/{name}")

    def read(self, name: str) -> bytes | None:
        """Return a whole object, None where there is none.

        Raises:
            ForbiddenError: these credentials may not read there.
            UnavailableError: it cannot be read now.
        """
        place = f"{self.location}/{name}"
        try:
            with reaching_gcs(place):
                data: bytes = gcs_file_system().cat_file(place)
        except FileNotFoundError:
            return None
        return data

    def write(self, name: str, data: bytes) -> None:
        """Put an object there, or replace it.

        Raises:
            NotFoundError: there is no such bucket.
            ForbiddenError: these credentials may not write there.
            UnavailableError: it cannot be written now.
        """
        place = f"{self.location}/{name}"
        try:
            with reaching_gcs(place):
                gcs_file_system().pipe_file(place, data)
        except FileNotFoundError as error:
            bucket = self.location.removeprefix(GCS).split("/")[0]
            raise NotFoundError(
                f"{place}: there is no bucket {bucket}; make it (gcloud storage buckets create {GCS}{bucket}), or "
                "name another"
            ) from error

    def stamps(self) -> dict[str, str]:
        """Return CRC-32C and size of every object below, from one listing.

        Raises:
            ForbiddenError: these credentials may not read there.
            UnavailableError: it cannot be read now.
        """
        system = gcs_file_system()
        try:
            with reaching_gcs(self.location):
                # Never from gcsfs's cache of listings: others write here too.
                system.invalidate_cache()
                found = system.find(self.location, detail=True)
        except FileNotFoundError:
            return {}
        start = len(self.location.removeprefix(GCS)) + 1
        return {name[start:]: f"{entry['crc32c']}:{entry['size']}" for name, entry in sorted(found.items())}

    def delete(self, name: str) -> None:
        """Delete an object, and all below it.

        Raises:
            ForbiddenError: these credentials may not delete there.
            UnavailableError: it cannot be deleted now.
        """
        place, system = f"{self.location}/{name}", gcs_file_system()
        try:
            with reaching_gcs(place):
                system.invalidate_cache()
                names = [*system.find(place)]
                if names:
                    system.rm(names)
                system.invalidate_cache()
        except FileNotFoundError:
            return


def open_place(place: str | Path) -> Place:
    """Return the folder at a local path or at `gs://bucket/path`.

    Raises:
        InvalidError: the place has another scheme, or names no bucket.
    """
    location = open_folder(place).location
    return GcsPlace(location) if location.startswith(GCS) else LocalPlace(Path(location).absolute())
