"""Where each feature's values lie in a serialised `tf.train.Example`, and their values without boxing one by one.

Protobuf's Python classes make an object of every integer; here a list is found by its byte span and decoded with
NumPy. Only the canonical layout is taken, the one that every encoder writes: one `Features` message, and lists of
numbers packed in one piece. Anything else is legal too but rare: it is left to protobuf.
Source: protobuf's encoding specification (varints, length-delimited fields, packed repeated fields).
"""

from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64, UInt8

__all__ = ["Span", "bytes_at", "find_spans", "floats_at", "integers_at", "places_at"]

Kind = Literal["bytes", "float", "int64"]

_KINDS: dict[int, Kind] = {0x0A: "bytes", 0x12: "float", 0x1A: "int64"}
_FIRST_FIELD = 0x0A  # field 1, length-delimited
_MAX_VARINT_BYTES = 10


@dataclass(frozen=True, slots=True)
class Span:
    """The values of one feature: bytes `start` to `stop` of the example.

    Packed floats or varints for numbers; for `bytes` the whole list, each value behind its tag and length.
    """

    kind: Kind
    start: int
    stop: int


def find_spans(data: bytes, wanted: Container[str] | None = None) -> dict[str, Span] | None:
    """Return the span of each feature (of the `wanted` ones only), or None where the layout is not canonical.

    A span lies inside `data`, and a float span holds whole floats.
    """
    try:
        start, stop = _field(data, 0, _FIRST_FIELD, len(data))
        if stop != len(data):
            return None
        found: dict[str, Span] = {}
        position = start
        while position < stop:
            entry, position = _field(data, position, _FIRST_FIELD, stop)
            key, key_stop = _field(data, entry, _FIRST_FIELD, position)
            name = data[key:key_stop].decode()
            if wanted is None or name in wanted:
                found[name] = _span(data, key_stop, position)
    except (IndexError, ValueError, KeyError):
        return None
    return found


def _span(data: bytes, position: int, stop: int) -> Span:
    """Read the `Feature` in the map entry's second field."""
    feature, end = _field(data, position, 0x12, stop)
    kind = _KINDS[data[feature]]
    body, body_end = _field(data, feature, data[feature], end)
    if end != stop or body_end != end:
        raise ValueError("more than one list")
    if kind != "bytes" and body < body_end:
        body, packed_end = _field(data, body, _FIRST_FIELD, body_end)
        if packed_end != body_end or (kind == "float" and (body_end - body) % 4):
            raise ValueError("not packed in one piece")
    return Span(kind, body, body_end)


def _field(data: bytes, position: int, tag: int, limit: int) -> tuple[int, int]:
    """Return where the content of the field at `position` starts and stops; its tag is one byte."""
    if data[position] != tag:
        raise ValueError("another field")
    position += 1
    size = shift = 0
    while (byte := data[position]) > 0x7F:
        size |= (byte & 0x7F) << shift
        shift += 7
        position += 1
    size |= byte << shift
    position += 1
    if position + size > limit:
        raise ValueError("beyond its message")
    return position, position + size


def floats_at(data: bytes, span: Span) -> Float32[np.ndarray, " n"]:
    """Return a float span's values, shape `[n]`, as a read-only view of `data`."""
    return np.frombuffer(data, "<f4", (span.stop - span.start) // 4, span.start)


def integers_at(data: bytes, span: Span) -> Int64[np.ndarray, " n"] | None:
    """Return an int64 span's values, shape `[n]`; None where a varint is cut short or too long."""
    raw: UInt8[np.ndarray, " m"] = np.frombuffer(data, np.uint8, span.stop - span.start, span.start)
    last = raw < 0x80
    if last.all():
        return raw.astype(np.int64)
    stops = np.flatnonzero(last) + 1
    if not len(stops) or stops[-1] != len(raw):
        return None
    starts = np.concatenate([[0], stops[:-1]])
    sizes = stops - starts
    longest = int(sizes.max())
    if longest > _MAX_VARINT_BYTES:
        return None
    payload = (raw & 0x7F).astype(np.uint64)
    values = np.zeros(len(starts), np.uint64)
    for place in range(longest):
        # Times and other large numbers all have one size, and need no choice.
        holds = slice(None) if place < sizes.min() else sizes > place
        values[holds] |= payload[starts[holds] + place] << np.uint64(7 * place)
    return values.view(np.int64)


def bytes_at(data: bytes, span: Span) -> list[bytes] | None:
    """Return a bytes span's values; equal neighbours share one object. None where the list is not canonical."""
    values: list[bytes] = []
    position, stop = span.start, span.stop
    entry, value = b"", b""
    try:
        while position < stop:
            if entry and data.startswith(entry, position):
                # A role or an instruction mostly stays the same all along: jump over runs of it.
                count = _run(data, entry, position, stop)
                values += [value] * count
                position += count * len(entry)
                continue
            start, end = _field(data, position, _FIRST_FIELD, stop)
            entry, value = data[position:end], data[start:end]
            values.append(value)
            position = end
    except (IndexError, ValueError):
        return None
    return values


def places_at(data: bytes, span: Span) -> Int64[np.ndarray, "n 2"] | None:
    """Return where each value of a bytes span starts and stops, shape `[n, 2]`; None where it is not canonical."""
    places: list[tuple[int, int]] = []
    position = span.start
    try:
        while position < span.stop:
            places.append(_field(data, position, _FIRST_FIELD, span.stop))
            position = places[-1][1]
    except (IndexError, ValueError):
        return None
    return np.array(places, np.int64).reshape(-1, 2)


def _run(data: bytes, entry: bytes, position: int, stop: int) -> int:
    """Return how often `entry` surely follows itself from `position` on: a power of two, found by doubling."""
    count, size = 1, len(entry)
    while position + 2 * count * size <= stop and data.startswith(entry * count, position + count * size):
        count *= 2
    return count
