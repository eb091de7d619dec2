"""One line of the capture log: a JSON object whose last member is the CRC-32C of the bytes before it.

    {"type":"step","observation":{...},...,"crc32c":"1c2d3e4f"}\\n

The checksum stands inside the object so that `jq` reads the log as it is. Floats are written as the shortest
text that reads back as the same float32.
"""

from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np
import orjson

from brain_service.errors import CorruptDataError, InvalidError

__all__ = [
    "MARK",
    "ROUNDS_TWICE",
    "SCHEMA_VERSION",
    "TAIL_BYTES",
    "check_line",
    "decode_line",
    "encode_line",
    "json_ready",
    "text_of",
]

SCHEMA_VERSION = "1.1"

MARK = b',"crc32c":"'
# The one float32 magnitude (of all 2^31, checked) whose shortest text reads back as its neighbour when a reader
# goes through a double, as every JSON parser does: it lies a hair from the middle of two float32.
ROUNDS_TWICE = np.uint32(0x15AE43FD).view(np.float32)

TAIL_BYTES = len(MARK) + 8 + len(b'"}\n')


def encode_line(record: Mapping[str, Any]) -> bytes:
    """Return `record` as one checksummed line with its newline; arrays must be C-contiguous.

    Raises:
        InvalidError: the record is empty, holds something JSON has no form for (an integer beyond 64 bits,
            a lone surrogate), which the error names, or has a member `crc32c` of its own.
    """
    if not record or "crc32c" in record:
        raise InvalidError("a log record needs members, none of them named 'crc32c'")
    try:
        body = orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY)[:-1]
    except (orjson.JSONEncodeError, TypeError) as error:
        field = _without_json_form(record, "")
        where = f"{field}: the value" if field else "the record"
        raise InvalidError(f"{where} has no JSON form: {error}", field=field) from error
    return b'%b%b%08x"}\n' % (body, MARK, google_crc32c.value(body))


def decode_line(line: bytes) -> dict[str, Any]:
    """Return the record of one line, without its checksum.

    Raises:
        CorruptDataError: the line is cut short, its checksum does not hold, or it is no JSON object.
    """
    check_line(line)
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise CorruptDataError(f"the line is no JSON object: {error}") from error
    del record["crc32c"]
    return dict(record)


def text_of(line: bytes) -> bytes:
    """Return the JSON text of a line's record as it stands, without its checksum.

    Raises:
        CorruptDataError: it is cut short, or its checksum does not hold.
    """
    check_line(line)
    return line[:-TAIL_BYTES] + b"}"


def check_line(line: bytes) -> None:
    """Hold a line against its checksum, without parsing it.

    Raises:
        CorruptDataError: it is cut short, or its checksum does not hold.
    """
    mark = len(line) - TAIL_BYTES
    if mark < 1 or line[mark : mark + len(MARK)] != MARK or not line.endswith(b'"}\n'):
        raise CorruptDataError("the line does not end in its checksum: it was cut short or changed")
    stored, computed = line[-11:-3], b"%08x" % google_crc32c.value(line[:mark])
    if stored != computed:
        raise CorruptDataError(
            f"checksum {computed.decode()} where the line says {stored.decode(errors='replace')}"
        )


def _without_json_form(node: Any, path: str) -> str | None:
    """Return the path of the first value that JSON has no form for, None if that cannot be told."""
    children: list[tuple[str, Any]] = []
    if isinstance(node, Mapping):
        children = [(f"{path}/{name}" if path else str(name), child) for name, child in node.items()]
    elif isinstance(node, list | tuple):
        children = [(f"{path}/{place}", child) for place, child in enumerate(node)]
    for below, child in children:
        try:
            orjson.dumps(child, option=orjson.OPT_SERIALIZE_NUMPY)
        except (orjson.JSONEncodeError, TypeError):
            return _without_json_form(child, below)
    return path or None


def json_ready(value: Any) -> Any:
    """Return a leaf in the form `encode_line` takes: contiguous arrays, NumPy scalars for shape `()`."""
    if not isinstance(value, np.ndarray | np.generic):
        return value
    if value.dtype == np.float32 and (np.abs(value) == ROUNDS_TWICE).any():
        value = value.astype(np.float64)
    return np.ascontiguousarray(value) if value.ndim else value[()]
