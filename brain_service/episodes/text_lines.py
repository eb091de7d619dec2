"""Whole lines of a text that comes in blocks, some at a time and never more of it in memory than that."""

from collections.abc import Iterable, Iterator
from typing import BinaryIO

from brain_service.errors import CorruptDataError

__all__ = ["MAX_LINE_BYTES", "line_batches", "read_blocks"]

MAX_LINE_BYTES = 128 * 1024**2
"""Far beyond any step; a file without newlines must not fill the memory."""

# Enough lines to make what is done a batch cheap, few enough to stay in the processor's cache.
_BLOCK_BYTES = 256 * 1024


def read_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Yield the rest of a file in blocks.

    Raises:
        OSError: the medium cannot read it.
    """
    while block := file.read(_BLOCK_BYTES):
        yield block


def line_batches(blocks: Iterable[bytes], *, torn: bool = False) -> Iterator[list[bytes]]:
    """Yield the lines without their newlines; a last one that has none comes only where `torn` is set.

    Raises:
        CorruptDataError: a line is longer than 128 MiB; says which.
    """
    number, rest = 1, [b""]
    rest_bytes = 0
    for block in blocks:
        head, newline, tail = block.rpartition(b"\n")
        if not newline:
            rest.append(block)
            rest_bytes += len(block)
            if rest_bytes > MAX_LINE_BYTES:
                raise CorruptDataError(
                    f"line {number} is longer than {MAX_LINE_BYTES} bytes; each step has its own"
                )
            continue
        lines = b"".join((*rest, head)).split(b"\n")
        number += len(lines)
        rest, rest_bytes = [tail], len(tail)
        yield lines
    if torn and (last := b"".join(rest)):
        yield [last]
