"""Where steps stand in a log: the offset of every 64th, so that two million steps cost a quarter megabyte."""

from array import array

__all__ = ["StepOffsets"]

_STRIDE = 64


class StepOffsets:
    """Byte offsets of an append-only row of lines; `len` is how many there are."""

    def __init__(self) -> None:
        self._kept = array("Q")
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, offset: int) -> None:
        """Note the offset in bytes of the next line."""
        if self._count % _STRIDE == 0:
            self._kept.append(offset)
        self._count += 1

    def nearest(self, index: int) -> tuple[int, int]:
        """Return index and offset of the last noted line at or before line `index` of those there are."""
        place = min(index, self._count - 1) // _STRIDE
        return place * _STRIDE, self._kept[place]

    def cut(self, count: int) -> None:
        """Forget all lines but the first `count`."""
        self._count = min(self._count, count)
        del self._kept[-(-self._count // _STRIDE) :]
