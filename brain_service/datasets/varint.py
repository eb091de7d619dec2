"""Protobuf's variable-length integers for whole arrays: seven bits a byte, the lowest first.

Source: protobuf's encoding guide, "Base 128 Varints".
"""

import numpy as np
from jaxtyping import Bool, Int64, Integer

__all__ = ["pack_varints", "varint"]

_MOST_BYTES = 10
_BLOCK = 1 << 16
_SHIFTS = np.arange(0, 7 * _MOST_BYTES, 7, dtype=np.uint64)


def varint(number: int) -> bytes:
    """Return one number that is not negative."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def pack_varints(values: Integer[np.ndarray, "*shape"] | Bool[np.ndarray, "*shape"]) -> bytes:
    """Return integers of at most 64 bits one after another; negative ones take ten bytes, as protobuf has it."""
    flat = values.reshape(-1)
    if flat.dtype == np.bool_ or (flat.size and flat.min() >= 0 and flat.max() < 0x80):
        return flat.astype(np.uint8).tobytes()
    # In blocks: the table below takes ten times the memory of its values.
    return b"".join(_pack(flat[n : n + _BLOCK].astype(np.int64)) for n in range(0, len(flat), _BLOCK))


def _pack(values: Int64[np.ndarray, " n"]) -> bytes:
    groups = values.view(np.uint64)[:, None] >> _SHIFTS
    # A group is written if it or any after it has a bit, and the first one always is.
    written = groups != 0
    written[:, 0] = True
    table = (groups & np.uint64(0x7F)).astype(np.uint8)
    table[:, :-1] |= np.where(written[:, 1:], np.uint8(0x80), np.uint8(0))
    packed: bytes = table[written].tobytes()
    return packed
