"""TFRecord framing: length-prefixed records, each with a masked CRC-32C over its length and its bytes.

    u64 little-endian length | u32 masked crc of those 8 bytes | bytes | u32 masked crc of the bytes

Source: the format notes in TensorFlow's `record_writer.h`; nothing of TensorFlow is imported.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np

from brain_service.errors import CorruptDataError

__all__ = ["FRAME_BYTES", "frame", "frame_parts", "read_record", "read_records", "unframe"]

FRAME_BYTES = 16
"""What framing adds to a record, in bytes."""

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_HEADER_BYTES = 12
_LARGE_BYTES = 2**26


def _masked_crc(data: bytes) -> int:
    return _mask(google_crc32c.value(data))


def _mask(crc: int) -> int:
    # A CRC of data that itself holds CRCs is weak, hence the rotation and the constant of the format.
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """Return `payload` as one framed record of `len(payload) + FRAME_BYTES` bytes."""
    length = _LENGTH.pack(len(payload))
    return b"".join(
        (length, _CRC.pack(_masked_crc(length)), payload, _CRC.pack(_masked_crc(payload))),
    )


def frame_parts(parts: Sequence[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Yield the pieces of one framed record whose bytes are `parts` one after another; none is copied."""
    crc = 0
    for part in parts:
        # The library takes no view but the one that NumPy makes.
        crc = google_crc32c.extend(crc, np.frombuffer(part, np.uint8) if isinstance(part, memoryview) else part)
    length = _LENGTH.pack(sum(map(len, parts)))
    yield length + _CRC.pack(_masked_crc(length))
    yield from parts
    yield _CRC.pack(_mask(crc))


def read_record(file: BinaryIO, name: str) -> bytes | None:
    """Read the record at the file's position and return its bytes, or None at the end of the file.

    `name` stands for the file in errors.

    Raises:
        CorruptDataError: the frame is cut short or a checksum does not hold; names the byte offset.
    """
    offset = file.tell()
    header = file.read(_HEADER_BYTES)
    if not header:
        return None
    if len(header) < _HEADER_BYTES:
        raise _cut(name, offset, _HEADER_BYTES, len(header))
    if _masked_crc(header[:8]) != _CRC.unpack_from(header, 8)[0]:
        raise CorruptDataError(
            f"{name}: the length of the record at byte {offset} fails its checksum; convert the episodes again"
        )
    (length,) = _LENGTH.unpack_from(header)
    # A length that passes its checksum and is still nonsense must not reserve memory before anything is read; and
    # a cut from payload and checksum together would be a second copy of a long episode.
    payload = file.read(length if length < _LARGE_BYTES else min(length, _left(file)))
    crc = file.read(_CRC.size)
    if len(payload) < length or len(crc) < _CRC.size:
        raise _cut(name, offset, length + FRAME_BYTES, _HEADER_BYTES + len(payload) + len(crc))
    if _masked_crc(payload) != _CRC.unpack(crc)[0]:
        raise CorruptDataError(
            f"{name}: the record at byte {offset} ({length} bytes) fails its checksum; convert the episodes again"
        )
    return payload


def _left(file: BinaryIO) -> int:
    """Return the bytes from the file's position to its end."""
    here = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(here)
    return end - here


def unframe(record: bytes, name: str, offset_bytes: int) -> bytes:
    """Return the bytes of one framed record that lies at `offset_bytes` of the file called `name` in errors.

    Raises:
        CorruptDataError: the frame is cut short, longer than its content, or a checksum does not hold.
    """
    if len(record) < FRAME_BYTES:
        raise _cut(name, offset_bytes, FRAME_BYTES, len(record))
    (length,) = _LENGTH.unpack_from(record)
    if _masked_crc(record[:8]) != _CRC.unpack_from(record, 8)[0] or length != len(record) - FRAME_BYTES:
        raise CorruptDataError(
            f"{name}: the length of the record at byte {offset_bytes} fails its checksum or is not the index's; "
            "convert the episodes again"
        )
    payload = record[_HEADER_BYTES:-4]
    if _masked_crc(payload) != _CRC.unpack_from(record, len(record) - 4)[0]:
        raise CorruptDataError(
            f"{name}: the record at byte {offset_bytes} ({length} bytes) fails its checksum; "
            "convert the episodes again"
        )
    return payload


def _cut(name: str, offset: int, expected_bytes: int, found_bytes: int) -> CorruptDataError:
    return CorruptDataError(
        f"{name}: the record at byte {offset} needs {expected_bytes} bytes, the file holds {found_bytes} of them; "
        "convert the episodes again"
    )


def read_records(path: Path) -> Iterator[bytes]:
    """Yield the records of a file in order.

    Raises:
        CorruptDataError: a frame is cut short or a checksum does not hold; names file and byte offset.
    """
    with path.open("rb") as file:
        while (payload := read_record(file, path.name)) is not None:
            yield payload
