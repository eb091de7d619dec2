"""Durable writes: temporary file, fsync, rename, fsync of the directory. The one place that does it."""

import contextlib
import ctypes
import errno
import os
import shutil
from pathlib import Path

__all__ = [
    "append_whole",
    "exchange_directory",
    "fsync_directory",
    "make_directory",
    "publish_directory",
    "remove_tree",
    "replace_symlink",
    "write_atomic",
]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def fsync_directory(path: Path) -> None:
    """Flush a directory's entries to the medium, so that a create or rename in it survives a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """Make a directory and its missing parents so that a power cut takes none of them, nor what is put in later.

    The entry of one that stands already is flushed too: whoever made it may have been killed before that.

    Raises:
        OSError: it cannot be made, or a file stands in its place.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing or [path]:
        # What only others may read was made by others.
        with contextlib.suppress(PermissionError):
            fsync_directory(folder.parent)


def _fsync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a reader, or a restart after a crash, sees the old or the new whole.

    Raises:
        OSError: the medium is full or read-only; `path` is unchanged and no temporary file stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def append_whole(fd: int, data: bytes) -> None:
    """Append bytes to a file that is open with O_APPEND: all of them and flushed to the medium, or none.

    Raises:
        OSError: the medium is full or failing; the file is as long as before.
    """
    size = os.fstat(fd).st_size
    try:
        written = os.write(fd, data)
        os.fsync(fd)
    except OSError:
        os.ftruncate(fd, size)
        raise
    if written != len(data):
        os.ftruncate(fd, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def publish_directory(temporary: Path, final: Path) -> None:
    """Make a finished directory visible under its final name: fsync every file, rename, fsync the parent.

    `temporary` and `final` share a file system. `final` must not exist.

    Raises:
        FileExistsError: `final` exists already; `temporary` is left as it is.
    """
    if final.exists():
        raise FileExistsError(str(final))
    _fsync_tree(temporary)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary.rename(final)
    fsync_directory(final.parent)


def exchange_directory(temporary: Path, final: Path) -> None:
    """Put a finished directory in the place of another in one step, and delete what stood there.

    `temporary` and `final` share a file system. Whoever looks sees the old or the new whole, never neither.

    Raises:
        OSError: the file system cannot exchange two names; both are as they were.
    """
    _fsync_tree(temporary)
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(temporary), os.fsencode(final)
    # Linux 3.15 and glibc 2.28; the standard library has no call for it.
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(final))
    fsync_directory(final.parent)
    # The exchange stands, whatever keeps the old files from going.
    shutil.rmtree(temporary, ignore_errors=True)


def _fsync_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            _fsync_file(Path(folder) / name)
        fsync_directory(Path(folder))


def replace_symlink(link: Path, target: str) -> None:
    """Point `link` at `target` (relative to the link's folder) in one step that survives a power cut."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
    fsync_directory(link.parent)


def remove_tree(path: Path) -> None:
    """Delete a directory by renaming it away first, so that a half-deleted one is never taken for whole."""
    doomed = path.with_name(f".{path.name}.{os.getpid()}.deleting")
    path.rename(doomed)
    fsync_directory(path.parent)
    shutil.rmtree(doomed)
