"""Where a dataset is written to: a folder on disk or below a bucket, a file at a time, each whole or not at all.

Place ── LocalPlace   temporary name, rename; files of the same disk are linked
     └── GcsPlace     objects over gcsfs; those of other folders of the bucket are copied inside the service
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from brain_service.datasets.shards import link_or_copy
from brain_service.datasets.storage import (
    Folder,
    GcsFolder,
    LocalFolder,
    Range,
    gcs_file_system,
    open_folder,
    reaching_gcs,
)
from brain_service.durable import write_atomic
from brain_service.errors import CorruptDataError, UnavailableError

__all__ = ["GcsPlace", "LocalPlace", "Place", "open_place"]

_PIECE_BYTES = 8 * 1024**2


@runtime_checkable
class Place(Protocol):
    """A folder that can be written to. A file appears under its name once it is whole."""

    @property
    def folder(self) -> Folder:
        """The same place, to read from."""
        ...

    def child(self, name: str) -> "Place":
        """Return the folder `name` inside; it is made with its first file."""
        ...

    def write(self, file: str, data: bytes) -> None:
        """Write a file, in place of one that is there.

        Raises:
            UnavailableError: the medium or the service refuses.
        """
        ...

    def create(self, file: str, data: bytes) -> bool:
        """Write a file where there is none; returns False, and changes nothing, where there is one.

        Raises:
            UnavailableError: the medium or the service refuses.
        """
        ...

    def stream(self, file: str) -> AbstractContextManager[BinaryIO]:
        """Open a file to write; it appears when the block ends without an error."""
        ...

    def take(self, folder: Folder, source: str, file: str) -> None:
        """Make `file` what `source` of another folder is: a link or a copy inside the service where it can be.

        Raises:
            CorruptDataError: `source` is gone.
            UnavailableError: the medium or the service refuses.
        """
        ...

    def remove(self) -> None:
        """Delete the folder and all that is in it, as far as it is there."""
        ...


@dataclass(frozen=True)
class LocalPlace:
    """A folder on this machine."""

    path: Path

    @property
    def folder(self) -> LocalFolder:
        """The same folder, to read from."""
        return LocalFolder(self.path)

    def child(self, name: str) -> "LocalPlace":
        """Return the folder `name` inside."""
        return LocalPlace(self.path / name)

    def write(self, file: str, data: bytes) -> None:
        """Write a file durably, in place of one that is there."""
        with _refused(self.path / file):
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path / file, data)

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
        """Link a file of this machine, or fetch one of a bucket."""
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

    def remove(self) -> None:
        """Delete the folder."""
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

    @property
    def folder(self) -> GcsFolder:
        """The same folder, to read from."""
        return GcsFolder(self.location)

    def child(self, name: str) -> "GcsPlace":
        """Return the folder `name` inside."""
        return GcsPlace(f"{self.location}/{name}")

    def write(self, file: str, data: bytes) -> None:
        """Write an object, in place of one that is there."""
        with _sending(f"{self.location}/{file}"):
            gcs_file_system().pipe_file(f"{self.location}/{file}", data)

    def create(self, file: str, data: bytes) -> bool:
        """Write an object where there is none (`ifGenerationMatch=0`)."""
        try:
            with _sending(f"{self.location}/{file}"):
                gcs_file_system().pipe_file(f"{self.location}/{file}", data, mode="create")
        except FileExistsError:
            return False
        return True

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
        """Copy an object inside the service, or send a file of this machine."""
        try:
            with _sending(f"{self.location}/{file}"):
                if isinstance(folder, LocalFolder):
                    gcs_file_system().put_file(str(folder.path / source), f"{self.location}/{file}")
                    return
                gcs_file_system().cp_file(f"{folder.location}/{source}", f"{self.location}/{file}")
        except FileNotFoundError as error:
            raise CorruptDataError(f"{folder.location}/{source} is gone; upload it again", file=source) from error

    def remove(self) -> None:
        """Delete the objects below."""
        with _sending(self.location):
            system = gcs_file_system()
            found = [f"gs://{name}" for name in system.find(self.location, refresh=True)]
            if found:
                system.rm(found)


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
    except FileExistsError:
        raise
    except OSError as error:
        raise UnavailableError(
            f"{path}: {error.strerror or error}; check permissions and free space, then start again"
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


def open_place(place: str | Path) -> Place:
    """Return the folder at a local path or at `gs://bucket/path` to write to; it need not exist.

    Raises:
        InvalidError: the place has another scheme, or names no bucket.
    """
    folder = open_folder(place)
    return LocalPlace(folder.path) if isinstance(folder, LocalFolder) else GcsPlace(folder.location)
