"""What the last conversion knew of each capture file, so that an unchanged one is not read again.

`<dataset>/.sources.json`. Losing it costs time, never a wrong answer: a file counts as unchanged only if inode,
size and both times are what they were, and these lie clearly before the moment at which it was hashed. Within a
tick of the clock a file can change and keep its time (git calls such an entry racy).
"""

import contextlib
import os
from pathlib import Path

import msgspec

from brain_service.durable import write_atomic
from brain_service.structs import prepared

__all__ = ["SourceCache"]

_FILE = ".sources.json"
# Beyond the coarsest clock of a file system in use (FAT: 2 s).
_SETTLED_NS = 3_000_000_000


class _Known(msgspec.Struct, frozen=True, array_like=True):
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    hashed_ns: int
    sha256: str


@prepared
class _Document(msgspec.Struct):
    folder: str
    files: dict[str, _Known]


class SourceCache:
    """The files of one input folder, known to one dataset. Fill it with `put` and `save` it."""

    def __init__(self, dataset: Path, folder: Path) -> None:
        self._path = dataset / _FILE
        self._folder = str(folder.resolve())
        self._before: dict[str, _Known] = {}
        self._now: dict[str, _Known] = {}
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            document = msgspec.json.decode(self._path.read_bytes(), type=_Document)
            if document.folder == self._folder:
                self._before = document.files

    def get(self, name: str, stat: os.stat_result) -> str | None:
        """Return the SHA-256 of a file's content if it is certainly what it was, else None."""
        known = self._before.get(name)
        if known is None or (known.inode, known.size_bytes, known.mtime_ns, known.ctime_ns) != _identity(stat):
            return None
        if max(known.mtime_ns, known.ctime_ns) + _SETTLED_NS > known.hashed_ns:
            return None
        self._now[name] = known
        return known.sha256

    def put(self, name: str, stat: os.stat_result, hashed_ns: int, sha256: str) -> None:
        """Remember a hash; `stat` and the time `hashed_ns` were taken before the file was read."""
        self._now[name] = _Known(*_identity(stat), hashed_ns, sha256)

    def save(self) -> None:
        """Write it, if it is another than before; where that fails the next conversion reads more."""
        if self._now != self._before:
            with contextlib.suppress(OSError):
                write_atomic(self._path, msgspec.json.encode(_Document(self._folder, self._now)))


def _identity(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
