"""What exactly is to be uploaded: every file with its size and digests, taken down before the first byte goes.

What is sent later is held against it, so a file that changes in between never becomes an object.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from brain_service.cloud.names import check_name
from brain_service.cloud.objects import crc32c_text
from brain_service.cloud.patience import ShouldStop, check_stop
from brain_service.cloud.storage import Progress
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError, UnavailableError

__all__ = ["Frozen", "FrozenFile", "freeze_dataset", "freeze_folder"]

_BLOCK_BYTES = 1 << 20
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class FrozenFile:
    """A file by its name below the folder (`a/b`); `crc32c` as Google writes it."""

    file: str
    size_bytes: int
    sha256: str
    crc32c: str


@dataclass(frozen=True, slots=True)
class Frozen:
    """A folder's files in the order in which they are sent: what tells of other files goes last.

    `path` is where they go below the destination. `logs` are the SHA-256 of the capture logs that a dataset holds.
    """

    folder: Path
    path: str
    files: tuple[FrozenFile, ...]
    logs: tuple[str, ...] = ()


def freeze_dataset(
    folder: Path, progress: Progress | None = None, should_stop: ShouldStop | None = None
) -> Frozen:
    """Read every byte of a dataset version, hold its shards against its manifest, and return what they are.

    Shards that the manifest does not know are left out: no converter wrote them.

    Raises:
        NotFoundError: there is no such folder.
        CorruptDataError: a shard is missing or not what the manifest says, or the manifest cannot be read.
        InvalidError: a name that a bucket cannot hold.
        UnavailableError: the medium cannot read.
        CancelledJobError: it was asked to stop.
    """
    from brain_service.datasets.manifest import read_manifest
    from brain_service.datasets.storage import LocalFolder
    from brain_service.datasets.versions import check_index

    if not folder.is_dir():
        raise NotFoundError(f"no dataset version at {folder}; 'brain datasets ls' lists them")
    manifest = read_manifest(folder)
    check_index(LocalFolder(folder), manifest)
    promised = {shard.file: shard for shard in manifest.shards}
    names = [name for name in _names(folder) if ".tfrecord" not in name or name in promised]
    files = _freeze(folder, names, progress, should_stop)
    for frozen in files:
        shard = promised.get(frozen.file)
        if shard is not None and (frozen.sha256, frozen.size_bytes) != (shard.sha256, shard.size_bytes):
            raise CorruptDataError(
                f"{folder / frozen.file}: its SHA-256 is not the manifest's; it is not uploaded. Restore it or "
                "convert the episodes again",
                file=frozen.file,
            )
    used = {entry.source for entries in manifest.splits.values() for entry in entries}
    logs = sorted({source.sha256 for source in manifest.sources if source.file in used})
    return Frozen(folder, check_name(f"{manifest.name}/{manifest.version}", str(folder)), files, tuple(logs))


def freeze_folder(folder: Path, progress: Progress | None = None, should_stop: ShouldStop | None = None) -> Frozen:
    """Read every file below a folder and return what they are; hidden ones and unfinished `.part` are left out.

    Raises:
        NotFoundError: there is no such folder.
        InvalidError: there is no file in it, or one with a name that a bucket cannot hold.
        UnavailableError: the medium cannot read.
        CancelledJobError: it was asked to stop.
    """
    if not folder.is_dir():
        raise NotFoundError(f"no folder at {folder}")
    names = list(_names(folder))
    if not names:
        raise InvalidError(f"{folder} holds no file to upload", field="local_dir")
    return Frozen(folder, "", _freeze(folder, names, progress, should_stop))


def _names(folder: Path) -> Iterator[str]:
    """Yield the names of the files below a folder; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise UnavailableError(f"{error.filename}: {error.strerror}; check its permissions") from error

    for at, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(at, name)
            if not name.startswith(".") and not name.endswith(".part") and path.is_file():
                yield check_name(path.relative_to(folder).as_posix(), str(folder))


def _freeze(
    folder: Path, names: list[str], progress: Progress | None, should_stop: ShouldStop | None
) -> tuple[FrozenFile, ...]:
    """Return the files, those that tell of others behind them, the outermost last."""
    names = sorted(names, key=lambda name: (name.rpartition("/")[2] == _MANIFEST, -name.count("/"), name))
    found: list[FrozenFile] = []
    try:
        total_bytes = sum((folder / name).stat().st_size for name in names)
        done_bytes = 0
        for name in names:
            for step_bytes, frozen in _digest(folder, name):
                check_stop(should_stop)
                done_bytes += step_bytes
                if progress is not None:
                    progress(done_bytes, total_bytes)
                if frozen is not None:
                    found.append(frozen)
    except OSError as error:
        raise UnavailableError(f"{error.filename}: {error.strerror}; check its permissions") from error
    return tuple(found)


def _digest(folder: Path, name: str) -> Iterator[tuple[int, FrozenFile | None]]:
    """Yield the bytes that were read since the last time, and at the end the file."""
    import google_crc32c

    sha256, crc32c, size_bytes = hashlib.sha256(), 0, 0
    with (folder / name).open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            sha256.update(block)
            crc32c = google_crc32c.extend(crc32c, block)
            size_bytes += len(block)
            yield len(block), None
    yield 0, FrozenFile(name, size_bytes, sha256.hexdigest(), crc32c_text(crc32c))
