"""Whole lines of a text that comes in blocks, some at a time and never more of it in memory than that."""

from collections.abc import Iterable, Iterator
from pathlib import Path
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


def line_batches(blocks: Iterable[bytes], path: Path) -> Iterator[tuple[list[bytes], bool]]:
    """Yield lines without their newlines, and True; at last a line that had none by itself, and False.

    Raises:
        CorruptDataError: a line is longer than 128 MiB; names `path` and the line.
    """
    number, rest, rest_bytes = 1, list[bytes](), 0
    for block in blocks:
        lines = block.split(b"\n")
        if len(lines) > 1:
            lines[0] = b"".join((*rest, lines[0]))
            rest = [lines.pop()]
            rest_bytes = len(rest[0])
            number += len(lines)
            yield lines, True
            continue
        rest.append(block)
        rest_bytes += len(block)
        if rest_bytes > MAX_LINE_BYTES:
            raise CorruptDataError(
                f"{path}:{number}: the line is longer than {MAX_LINE_BYTES} bytes; each step has its own"
            )
    if last := b"".join(rest):
        yield [last], False
