"""An uncompressed log opened for reading: any line without those before it, since each step tells its index."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from brain_service.episodes.log_format import decode_line
from brain_service.errors import CorruptDataError

__all__ = ["PlainLog", "open_regular"]

# Reading this much costs no more than the probe that could spare it.
_NEAR_BYTES = 256 * 1024
_TAIL_BYTES = 64 * 1024


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; a pipe would keep whoever opens it waiting for ever.

    Raises:
        OSError: it cannot be opened, or is a pipe or the like.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a directory says what it is by itself
        raise OSError(errno.ENXIO, "it is no regular file", str(path))
    return path.open("rb")


class PlainLog:
    """A `.jsonl` log, closed or growing. Lines count from 0, the header; line `i + 1` is step `i`.

    Close it, or use `with`. A last line without its newline is still being written and is left out.
    """

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            OSError: it cannot be opened, or is a pipe or the like.
        """
        self._path = path
        self._file = open_regular(path)
        self._size_bytes = os.fstat(self._file.fileno()).st_size

    def read_lines(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the lines `start` to `stop - 1` with their newlines; a damaged one is yielded as it is.

        Raises:
            OSError: the medium cannot read it.
        """
        number, offset = self._near(start) if start > 1 else (0, 0)
        self._file.seek(offset)
        while stop is None or number < stop:
            line = self._file.readline()
            if not line.endswith(b"\n"):
                return
            if number >= start:
                yield line
            number += 1

    def last_line(self) -> bytes:
        """Return the last line, whole or torn; empty for an empty file.

        Raises:
            OSError: the medium cannot read it.
        """
        lines = self._tail(1)
        return lines[-1] if lines else b""

    def steps(self) -> int:
        """Return the number of steps by the last whole line that is one.

        Raises:
            OSError: the medium cannot read it.
        """
        for line in reversed(self._tail(3)):
            index = _step_index(line)
            if index is not None:
                return index + 1
        return 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "PlainLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tail(self, count: int) -> list[bytes]:
        """Return at least the last `count` lines, or all of a shorter file."""
        window = _TAIL_BYTES
        while True:
            begin = max(0, self._size_bytes - window)
            self._file.seek(begin)
            lines = self._file.read(window).splitlines(keepends=True)
            if begin == 0:
                return lines
            # The first piece may be the rest of a long line: a final observation can be large.
            if len(lines) > count:
                return lines[1:]
            window *= 8

    def _near(self, line: int) -> tuple[int, int]:
        """Return number and offset of a line at or before `line`, close enough to read on from.

        By bisection over the bytes: a probe reads the first whole line behind its place. A line that is no step
        (the end, a torn or a damaged one) sends the search to the lines before it.
        """
        best, low, high = (0, 0), 0, self._size_bytes
        while high - low > _NEAR_BYTES:
            middle = (low + high) // 2
            self._file.seek(middle)
            offset = middle + len(self._file.readline())
            index = _step_index(self._file.readline()) if offset < high else None
            if index is not None and index + 1 <= line:
                best, low = (index + 1, offset), offset
            else:
                high = middle
        return best


def _step_index(line: bytes) -> int | None:
    try:
        record = decode_line(line)
    except CorruptDataError:
        return None
    metadata = record.get("step_metadata")
    index = metadata.get("step_index") if record.get("type") == "step" and isinstance(metadata, dict) else None
    return index if isinstance(index, int) else None
