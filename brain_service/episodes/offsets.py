"""Where steps stand in a log: the offset of every 64th, so that two million steps cost a quarter megabyte."""

from array import array
from collections.abc import Callable

from brain_service.errors import CorruptDataError

__all__ = ["StepOffsets"]

_STRIDE = 64
_WINDOW_BYTES = 64 * 1024


class StepOffsets:
    """Byte offsets of a growing row of lines; `len` is how many there are. For one thread at a time."""

    def __init__(self) -> None:
        self._kept = array("Q")
        self._count = 0
        self._last_found = (0, 0)

    def __len__(self) -> int:
        return self._count

    def append(self, offset: int) -> None:
        """Note the offset in bytes of the next line."""
        if self._count % _STRIDE == 0:
            self._kept.append(offset)
        self._count += 1

    def locate(self, index: int, read: Callable[[int, int], bytes]) -> int:
        """Return the offset in bytes of line `index`, one of those there are; `read` is (offset, length).

        Lines asked for in order are found from one to the next.

        Raises:
            CorruptDataError: the file ends before it.
        """
        place = index // _STRIDE
        near = (place * _STRIDE, self._kept[place])
        if near[0] < self._last_found[0] <= index:
            near = self._last_found
        self._last_found = (index, _find_line(read, near[1], index - near[0]))
        return self._last_found[1]

    def cut(self, count: int) -> None:
        """Forget all lines but the first `count`."""
        self._count = min(self._count, count)
        self._last_found = (0, 0)
        del self._kept[-(-self._count // _STRIDE) :]


def _find_line(read: Callable[[int, int], bytes], offset: int, skip: int) -> int:
    """Return the offset in bytes of the line `skip` lines behind the one at `offset`.

    Raises:
        CorruptDataError: the file ends before it.
    """
    while skip:
        data = read(offset, _WINDOW_BYTES)
        if not data:
            raise CorruptDataError("the log is shorter than what was written to it")
        found = data.count(b"\n")
        if found < skip:
            skip -= found
            offset += len(data)
            continue
        place = -1
        for _ in range(skip):
            place = data.index(b"\n", place + 1)
        return offset + place + 1
    return offset
