"""The file of one episode: whole lines are appended or nothing is, and only the lock's holder writes.

An append is one `pwrite` at the end of the last whole line. Once it returns, the kernel has the bytes and no
kill of this process can lose them; after `sync` no power cut can. A failed append is cut off again, so what
stands before `size_bytes` is whole lines at every moment.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

from brain_service.durable import fsync_directory
from brain_service.episodes.page_cache import bring_to_medium
from brain_service.errors import ConflictError, NotFoundError, UnavailableError

__all__ = ["EpisodeFile", "io_problem"]

_REWRITE_BYTES = 1024 * 1024
# How long the free space that was found is good for, less what was written since.
_SPACE_S = 0.25


def io_problem(error: OSError, doing: str) -> UnavailableError:
    """Return the error that tells an operator why the medium refused, and what to do about it."""
    advice = {
        errno.ENOSPC: "the disk is full: convert, upload or delete episodes",
        errno.EDQUOT: "the disk quota is used up: delete episodes or raise it",
        errno.EFBIG: "the file size limit is reached: end the episode and start another",
        errno.EROFS: "the file system is read-only: check the medium and remount it",
        errno.EACCES: "permission denied: make the directory writable for this user",
        errno.EPERM: "not permitted: make the directory writable for this user",
        errno.EIO: "the medium fails: replace it",
    }
    reason = advice.get(error.errno or 0, os.strerror(error.errno or 0))
    return UnavailableError(f"cannot {doing}: {reason}", retry_after_s=1.0)


class EpisodeFile:
    """An open, locked capture log. `sync` may run beside the others, which are for one thread at a time.

    `size_bytes` is the end of the last whole line. `failed` tells why the file takes no lines until `revive` has
    succeeded. `written` is told how many bytes each write had.
    """

    def __init__(self, path: Path, fd: int, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.failed: str | None = None
        self.written: Callable[[int], None] = _ignore
        self._fd = fd
        self._tail_is_dirty = False
        self._closed = False
        self._free = (0, 0.0)
        # A descriptor closed under a running fdatasync could by then be another file's.
        self._sync_lock = threading.Lock()

    @classmethod
    def create(cls, path: Path, header_line: bytes) -> "EpisodeFile":
        """Make a log that holds its header, locked and durable; it appears under `path` whole or not at all.

        Raises:
            ConflictError: `path` exists.
            UnavailableError: the directory is read-only, the medium full or failing; nothing stays behind.
        """
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        fd = -1
        published = False
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write_all(fd, header_line, 0)
            os.fsync(fd)
            _publish(temporary, path)
            published = True
            fsync_directory(path.parent)
        except OSError as error:
            if fd >= 0:
                (path if published else temporary).unlink(missing_ok=True)
                os.close(fd)
            if isinstance(error, FileExistsError):
                raise ConflictError(f"episode {path.stem!r} exists; choose another episode_id") from error
            raise io_problem(error, f"create episode {path.stem!r}") from error
        return cls(path, fd, len(header_line))

    @classmethod
    def open(cls, path: Path) -> "EpisodeFile":
        """Open and lock an existing log; `size_bytes` is the file's size, whole lines or not.

        Raises:
            NotFoundError: no such file.
            ConflictError: another process or another open file holds its lock.
            UnavailableError: it cannot be opened for writing, or the file system has no locks.
        """
        try:
            fd = os.open(path, os.O_RDWR)
        except FileNotFoundError as error:
            raise NotFoundError(f"no episode {path.stem!r}; GET /episodes lists them") from error
        except OSError as error:
            raise io_problem(error, f"open episode {path.stem!r}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise ConflictError(f"episode {path.stem!r} is being written by another process") from error
        except OSError as error:
            os.close(fd)
            raise io_problem(error, f"lock episode {path.stem!r}") from error
        return cls(path, fd, os.fstat(fd).st_size)

    def append(self, lines: bytes) -> int:
        """Write whole lines at the end and return their offset in bytes.

        Raises:
            UnavailableError: the medium took none or only a part of it, and the part was cut off again.
        """
        self._require_writable()
        offset = self.size_bytes
        try:
            _write_all(self._fd, lines, offset)
        except OSError as error:
            self.take_back(offset)
            raise io_problem(error, f"append to episode {self.path.stem!r}; nothing was written") from error
        self.size_bytes = offset + len(lines)
        self.written(len(lines))
        return offset

    def take_back(self, size_bytes: int) -> None:
        """Cut off what stands behind `size_bytes`: now or, where the medium refuses, before the next line."""
        self.size_bytes = size_bytes
        self._tail_is_dirty = True
        with contextlib.suppress(UnavailableError):
            self.truncate(size_bytes)

    def truncate(self, size_bytes: int) -> None:
        """Cut the file to `size_bytes`, the end of its last good line.

        Raises:
            UnavailableError: the medium refuses; the next append tries again.
        """
        try:
            os.ftruncate(self._fd, size_bytes)
        except OSError as error:
            raise io_problem(error, f"cut the torn end of episode {self.path.stem!r}") from error
        self.size_bytes = size_bytes
        self._tail_is_dirty = False

    def sync(self) -> None:
        """Flush what was appended to the medium; a file that was closed meanwhile is durable already.

        Raises:
            UnavailableError: the medium refused. The kernel may then have dropped the pages and a second
                attempt would claim success, so the file takes no more lines until `revive` wrote them anew.
        """
        with self._sync_lock:
            if self._closed:
                return
            self._require_healthy()
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                problem = io_problem(error, f"flush episode {self.path.stem!r} to the medium")
                self.failed = problem.detail
                raise problem from error

    def settle(self, start: int = 0) -> None:
        """Bring what a dead process wrote from byte `start` to the end to the medium; its flushes may have failed.

        Raises:
            UnavailableError: the medium refuses; the next attempt begins anew.
        """
        try:
            bring_to_medium(self._fd, start)
        except OSError as error:
            raise io_problem(error, f"flush episode {self.path.stem!r} to the medium") from error

    def revive(self, durable_bytes: int, is_whole: Callable[[bytes], bool]) -> int:
        """After a failed flush: write all lines behind `durable_bytes` anew, flush, and take lines again.

        Lines are read back as far as the kernel still has them and `is_whole` says so; the rest is cut off.
        Returns the new size in bytes.

        Raises:
            UnavailableError: the medium still refuses; nothing was lost by the attempt.
        """
        with self._sync_lock:
            if self._closed:
                return self.size_bytes
            try:
                good_bytes = self._rewrite(durable_bytes, is_whole)
                os.ftruncate(self._fd, good_bytes)
                os.fdatasync(self._fd)
            except OSError as error:
                raise io_problem(error, f"flush episode {self.path.stem!r} to the medium") from error
            self.size_bytes = good_bytes
            self._tail_is_dirty = False
            self.failed = None
            return good_bytes

    def _rewrite(self, start: int, is_whole: Callable[[bytes], bool]) -> int:
        """Write the whole lines from `start` to `size_bytes` where they stand; return the end of the last one."""
        while start < self.size_bytes:
            length = min(_REWRITE_BYTES, self.size_bytes - start)
            data = os.pread(self._fd, length, start)
            while b"\n" not in data and len(data) == length and start + length < self.size_bytes:
                length = min(2 * length, self.size_bytes - start)
                data = os.pread(self._fd, length, start)
            *lines, _ = data.split(b"\n")
            good = list(itertools.takewhile(is_whole, (line + b"\n" for line in lines)))
            whole = b"".join(good)
            _write_all(self._fd, whole, start)
            self.written(len(whole))
            start += len(whole)
            if len(good) < len(lines) or not good:
                break
        return start

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes at `offset`, fewer at the end of the file.

        Raises:
            UnavailableError: the medium cannot read them.
        """
        try:
            return os.pread(self._fd, length, offset)
        except OSError as error:
            raise io_problem(error, f"read episode {self.path.stem!r}") from error

    def require_space(self, size_bytes: int, reserve_bytes: int) -> None:
        """Check that the file system keeps `reserve_bytes` for others; asked for again before each write.

        Raises:
            UnavailableError: less is free.
        """
        left_bytes, asked_s = self._free
        now_s = time.monotonic()
        if now_s - asked_s > _SPACE_S or left_bytes - size_bytes < reserve_bytes:
            stat = os.fstatvfs(self._fd)
            left_bytes, asked_s = stat.f_bavail * stat.f_frsize, now_s
        self._free = (left_bytes - size_bytes, asked_s)
        if left_bytes < reserve_bytes:
            raise UnavailableError(
                f"only {left_bytes} bytes are free, {reserve_bytes} are kept in reserve: "
                "convert, upload or delete episodes",
                retry_after_s=1.0,
            )

    def close(self) -> None:
        """Release the lock and the descriptor; harmless twice."""
        with self._sync_lock:
            if not self._closed:
                self._closed = True
                os.close(self._fd)

    def _require_healthy(self) -> None:
        if self.failed is not None:
            raise UnavailableError(
                f"{self.failed}. The daemon tries again by itself; steps are taken once it succeeds",
                retry_after_s=1.0,
            )

    def _require_writable(self) -> None:
        if self._closed:
            raise ConflictError(f"episode {self.path.stem!r} is closed")
        self._require_healthy()
        if self._tail_is_dirty:
            self.truncate(self.size_bytes)


def _ignore(_: int) -> None:
    """Nobody counts."""


def _write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data`; the kernel may take a part first and name the error only on the next call."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _publish(temporary: Path, path: Path) -> None:
    """Give a file its final name, failing if that is taken: `rename` alone would replace it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        # FAT and exFAT have no hard links.
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        if path.exists():
            raise FileExistsError(str(path)) from error
        temporary.rename(path)
    else:
        temporary.unlink()
