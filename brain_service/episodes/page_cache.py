"""A file may read back whole and yet not be on the medium: what a failed flush leaves behind.

When a flush fails, Linux keeps the pages in its cache, marks them as clean and tells the error once. Whoever
opens the file later (after a kill, say) reads everything, flushes nothing, is told that all went well, and a power
cut takes it. Only a second look that does not go through the cache tells: so the pages are dropped, read again
from the medium, and where that differs from what the cache held, what the cache held is written anew.

It is not enough to drop the pages and to believe the medium: the cache may hold the only copy of steps that were
accepted. Writing everything anew would do as well, at the cost of a whole log's wear with every restart.

Source: Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020; posix_fadvise(2).
"""

import os
from pathlib import Path

__all__ = ["bring_file_to_medium", "bring_to_medium"]

# A multiple of every page size, for a page that is not dropped whole is kept.
_CHUNK_BYTES = 1024 * 1024


def bring_to_medium(fd: int, start: int = 0) -> None:
    """Make a file durable from `start` (in bytes) to its end, whatever became of earlier flushes of it.

    Nobody else may be writing to it.

    Raises:
        OSError: the medium refuses to read, write or flush; nothing was lost by the attempt.
    """
    # First, for only a clean page can be dropped.
    is_flushed = _flush(fd)
    offset = start - start % _CHUNK_BYTES
    while held := os.pread(fd, _CHUNK_BYTES, offset):
        os.posix_fadvise(fd, offset, _CHUNK_BYTES, os.POSIX_FADV_DONTNEED)
        if not _reads_back(fd, held, offset):
            _write(fd, held, offset)
            is_flushed = False
        offset += len(held)
    if not is_flushed:
        os.fsync(fd)


def bring_file_to_medium(path: Path, start: int = 0) -> None:
    """Do as `bring_to_medium` with a file by its name, from byte `start` on.

    Raises:
        OSError: as there, or it is not there.
    """
    try:
        fd = os.open(path, os.O_RDWR)
    except PermissionError:
        fd = os.open(path, os.O_RDONLY)  # enough, unless something of it was lost
    try:
        bring_to_medium(fd, start)
    finally:
        os.close(fd)


def _flush(fd: int) -> bool:
    """Tell whether a flush succeeded; an error may be that of an earlier one, told late."""
    try:
        os.fsync(fd)
    except OSError:
        return False
    return True


def _reads_back(fd: int, held: bytes, offset: int) -> bool:
    try:
        return os.pread(fd, len(held), offset) == held
    except OSError:
        return False  # the cache held what the medium cannot read


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
