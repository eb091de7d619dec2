"""Where a dataset or a run is written to: a folder on disk or below a bucket, a file at a time, each whole.

Place ── LocalPlace   temporary name, fsync, rename; files of the same disk are linked
     └── GcsPlace     objects over gcsfs; those of other folders of the bucket are copied inside the service
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from brain_service.datasets.shards import link_or_copy
from brain_service.datasets.storage import (
    GCS,
    Folder,
    GcsFolder,
    LocalFolder,
    Range,
    gcs_file_system,
    open_folder,
    reaching_gcs,
)
from brain_service.durable import make_directory, write_atomic
from brain_service.errors import CorruptDataError, NotFoundError, UnavailableError

__all__ = ["GcsPlace", "LocalPlace", "Place", "open_place"]

_PIECE_BYTES = 8 * 1024**2


@runtime_checkable
class Place(Protocol):
    """A folder that can be written to; it need not exist. A file appears under its name once it is whole.

    A file's name may hold slashes: it is the path of a file below.

    Raises, in every method:
        ForbiddenError: these credentials may not do that there.
        UnavailableError: the medium or the service refuses.
    """

    @property
    def location(self) -> str:
        """Where it is, as a user would type it."""
        ...

    @property
    def folder(self) -> Folder:
        """The same place, to read from."""
        ...

    def child(self, name: str) -> "Place":
        """Return the folder `name` inside; it is made with its first file."""
        ...

    def read(self, file: str) -> bytes | None:
        """Return a whole file, None where there is none."""
        ...

    def write(self, file: str, data: bytes) -> None:
        """Write a file, in place of one that is there.

        Raises:
            NotFoundError: there is no such bucket.
        """
        ...

    def create(self, file: str, data: bytes) -> bool:
        """Write a file where there is none; returns False, and changes nothing, where there is one.

        Raises:
            NotFoundError: there is no such bucket.
        """
        ...

    def stream(self, file: str) -> AbstractContextManager[BinaryIO]:
        """Open a file to write; it appears when the block ends without an error."""
        ...

    def take(self, folder: Folder, source: str, file: str) -> None:
        """Make `file` what `source` of another folder is: a link or a copy inside the service where it can be.

        Raises:
            CorruptDataError: `source` is gone.
        """
        ...

    def stamps(self) -> dict[str, str]:
        """Return for every file below, by its path, a text that changes with its bytes.

        On this machine that is the SHA-256 of what is read; on a bucket CRC-32C and size as the service keeps
        them, of which nothing is read.
        """
        ...

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with all that is in it; what is not there is no error."""
        ...

    def remove(self) -> None:
        """Delete the folder and all that is in it, as far as it is there."""
        ...


@dataclass(frozen=True)
class LocalPlace:
    """A folder on this machine."""

    path: Path

    @property
    def location(self) -> str:
        """Its path."""
        return str(self.path)

    @property
    def folder(self) -> LocalFolder:
        """The same folder, to read from."""
        return LocalFolder(self.path)

    def child(self, name: str) -> "LocalPlace":
        """Return the folder `name` inside."""
        return LocalPlace(self.path / name)

    def read(self, file: str) -> bytes | None:
        """Return a whole file, None where there is none."""
        with _refused(self.path / file):
            try:
                return (self.path / file).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, file: str, data: bytes) -> None:
        """Write a file durably, in place of one that is there."""
        path = self.path / file
        with _refused(path):
            make_directory(path.parent)
            write_atomic(path, data)

    def create(self, file: str, data: bytes) -> bool:
        """Write a file where there is none."""
        with _refused(self.path / file), self._temporary() as temporary:
            temporary.write_bytes(data)
            try:
                (self.path / file).hardlink_to(temporary)
            except FileExistsError:
                return False
            return True

    @contextmanager
    def stream(self, file: str) -> Iterator[BinaryIO]:
        """Open a file to write; it appears when the block ends without an error."""
        with self._temporary() as temporary:
            with temporary.open("wb") as written:
                yield written
            with _refused(self.path / file):
                temporary.replace(self.path / file)

    def take(self, folder: Folder, source: str, file: str) -> None:
        """Link a file of this machine, or fetch one of a bucket.

        Raises:
            CorruptDataError: it is gone.
        """
        if not isinstance(folder, LocalFolder):
            with self.stream(file) as written:
                _fetch(folder, source, written)
            return
        if not (folder.path / source).is_file():
            raise CorruptDataError(f"{folder.path / source} is gone; restore it", file=source)
        with _refused(self.path / file):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / file).unlink(missing_ok=True)
            link_or_copy(folder.path / source, self.path / file)

    def stamps(self) -> dict[str, str]:
        """Return the SHA-256 of every file below."""
        with _refused(self.path):
            files = sorted(path for path in self.path.rglob("*") if path.is_file())
            return {
                path.relative_to(self.path).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in files
            }

    def delete(self, name: str) -> None:
        """Delete a file or a folder."""
        path = self.path / name
        with _refused(path):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder; what cannot be deleted stays."""
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        with _refused(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            holder = tempfile.TemporaryDirectory(prefix=".write-", dir=self.path)
        with holder as name:
            yield Path(name) / "file"


@dataclass(frozen=True)
class GcsPlace:
    """A folder below a bucket. Picklable: a worker process connects by itself."""

    location: str
    """`gs://bucket/path` without a slash at its end."""

    @property
    def folder(self) -> GcsFolder:
        """The same folder, to read from."""
        return GcsFolder(self.location)

    def child(self, name: str) -> "GcsPlace":
        """Return the folder `name` inside."""
        return GcsPlace(f"{self.location}/{name}")

    def read(self, file: str) -> bytes | None:
        """Return a whole object, None where there is none."""
        place = f"{self.location}/{file}"
        try:
            with reaching_gcs(place):
                data: bytes = gcs_file_system().cat_file(place)
        except FileNotFoundError:
            return None
        return data

    def write(self, file: str, data: bytes) -> None:
        """Write an object, in place of one that is there."""
        self._put(file, data, "overwrite")

    def create(self, file: str, data: bytes) -> bool:
        """Write an object where there is none (`ifGenerationMatch=0`)."""
        try:
            self._put(file, data, "create")
        except FileExistsError:
            return False
        return True

    def _put(self, file: str, data: bytes, mode: str) -> None:
        place = f"{self.location}/{file}"
        try:
            with _sending(place):
                gcs_file_system().pipe_file(place, data, mode=mode)
        except FileNotFoundError as error:
            bucket = self.location.removeprefix(GCS).split("/")[0]
            raise NotFoundError(
                f"{place}: there is no bucket {bucket}; make it (gcloud storage buckets create {GCS}{bucket}), or "
                "name another"
            ) from error

    @contextmanager
    def stream(self, file: str) -> Iterator[BinaryIO]:
        """Open an object to write, through a file of this machine: what is sent is whole."""
        with tempfile.TemporaryFile() as written:
            yield written
            written.seek(0)
            place = f"{self.location}/{file}"
            with _sending(place), gcs_file_system().open(place, "wb", block_size=_PIECE_BYTES) as remote:
                shutil.copyfileobj(written, remote, _PIECE_BYTES)

    def take(self, folder: Folder, source: str, file: str) -> None:
        """Copy an object inside the service, or send a file of this machine.

        Raises:
            CorruptDataError: it is gone.
        """
        try:
            with _sending(f"{self.location}/{file}"):
                if isinstance(folder, LocalFolder):
                    gcs_file_system().put_file(str(folder.path / source), f"{self.location}/{file}")
                    return
                gcs_file_system().cp_file(f"{folder.location}/{source}", f"{self.location}/{file}")
        except FileNotFoundError as error:
            raise CorruptDataError(f"{folder.location}/{source} is gone; upload it again", file=source) from error

    def stamps(self) -> dict[str, str]:
        """Return CRC-32C and size of every object below, from one listing."""
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
        """Delete an object, and all below it."""
        self.child(name).remove()

    def remove(self) -> None:
        """Delete the objects below."""
        system = gcs_file_system()
        try:
            with reaching_gcs(self.location):
                system.invalidate_cache()
                names = [*system.find(self.location)]
                if names:
                    system.rm(names)
                system.invalidate_cache()
        except FileNotFoundError:
            return


def _fetch(folder: Folder, file: str, written: BinaryIO) -> None:
    """Copy a file a piece at a time.

    Raises:
        CorruptDataError: it is gone.
        UnavailableError: it cannot be read now.
    """
    start_byte = 0
    while True:
        (piece,) = folder.read_ranges([Range(file, start_byte, _PIECE_BYTES)])
        written.write(piece)
        start_byte += len(piece)
        if len(piece) < _PIECE_BYTES:
            return


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turn what the medium raises into an error of ours.

    Raises:
        UnavailableError: it refuses.
    """
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"{path}: {error.strerror or error}; check permissions and free space, or choose another output "
            "directory"
        ) from error


@contextmanager
def _sending(place: str) -> Iterator[None]:
    """As `reaching`; an object that is there already is the caller's matter too.

    Raises:
        FileExistsError: there is such an object.
        UnavailableError: anything else went wrong.
    """
    try:
        with reaching_gcs(place):
            yield
    except UnavailableError as error:
        if isinstance(error.__cause__, FileExistsError):
            raise FileExistsError(place) from error
        raise


def open_place(place: str | Path) -> LocalPlace | GcsPlace:
    """Return the folder at a local path or at `gs://bucket/path` to write to; it need not exist.

    Raises:
        InvalidError: the place has another scheme, or names no bucket.
    """
    folder = open_folder(place)
    return LocalPlace(folder.path.absolute()) if isinstance(folder, LocalFolder) else GcsPlace(folder.location)
