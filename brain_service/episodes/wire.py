"""Request bodies of `POST /episodes/{id}/steps`: one step, an array of steps, or a step a line.

A body is cut into its steps first and each is parsed by itself, so that no call holds the interpreter for the
length of a whole batch.
"""

import re
from typing import Any, Literal

import msgspec
import numpy as np

from brain_service.episodes.schema import StepIn
from brain_service.errors import InvalidError, MalformedError, TooLargeError

__all__ = [
    "BodyKind",
    "Piece",
    "body_kind",
    "invalid_step",
    "is_one_step",
    "parse_step",
    "plain_bytes",
    "read_msgpack",
    "split_steps",
]

BodyKind = Literal["json", "ndjson", "msgpack"]
Piece = bytes | msgspec.Raw
"""The bytes of one step inside a body."""

_KINDS: dict[str, BodyKind] = {
    "application/x-ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "application/ndjson": "ndjson",
    "application/msgpack": "msgpack",
    "application/x-msgpack": "msgpack",
}
_JSON_STEP = msgspec.json.Decoder(StepIn)
_JSON_PIECES = msgspec.json.Decoder(list[msgspec.Raw])
_MSGPACK_PIECES = msgspec.msgpack.Decoder(list[msgspec.Raw])
# Below it even an array of single digits takes no more than a few megabytes as pieces.
_COUNTED_FROM_BYTES = 256 * 1024

_DTYPE = re.compile(r"[<>=|]?(b1|f[248]|[iu][1248])|bool|float(16|32|64)|u?int(8|16|32|64)")
# Nested deeper, a map is counted as a whole: no feature lies that deep.
_WALKED_DEPTH = 16
_MAP = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])

_WHERE = re.compile(r" - at `(?:key in )?\$(?P<path>[^`]*)`$")
_LINE = re.compile(rb"[^\n]+")


def body_kind(content_type: str) -> BodyKind:
    """Return how a body of this media type is read; what is neither NDJSON nor msgpack is JSON."""
    return _KINDS.get(content_type.partition(";")[0].strip().lower(), "json")


def is_one_step(body: bytes, kind: BodyKind) -> bool:
    """Tell by its first byte that a body is one step; False also where that byte does not tell."""
    first = body[0] if body else 0
    if kind == "msgpack":
        return 0x80 <= first <= 0x8F or first in (0xDE, 0xDF)
    return kind == "json" and first == 0x7B


def split_steps(body: bytes, kind: BodyKind, max_steps: int) -> tuple[list[Piece], bool]:
    """Cut a body into its steps; tell whether they came as a batch (array or NDJSON).

    Raises:
        MalformedError: the bytes are no JSON or msgpack.
        InvalidError: a large array holds something that is no object.
        TooLargeError: more than `max_steps` steps.
    """
    if kind == "ndjson":
        return _split_lines(body, max_steps), True
    if kind == "msgpack":
        count = _msgpack_count(body)
        if count is None:
            return [body], False
        _require_count(count, max_steps)
        return _pieces(_MSGPACK_PIECES, body), True
    if body.lstrip()[:1] != b"[":
        return [body], False
    if len(body) > _COUNTED_FROM_BYTES:
        _count_first(body, max_steps)
    pieces = _pieces(_JSON_PIECES, body)
    _require_count(len(pieces), max_steps)
    return pieces, True


def parse_step(piece: Piece, kind: BodyKind, prefix: str = "") -> StepIn:
    """Parse one step; `prefix` ("steps/3" in a batch) goes before the field names in errors.

    In msgpack a value may be a typed array `{"__ndarray__": true, "dtype", "shape", "data"}`.

    Raises:
        MalformedError: the bytes are no JSON or msgpack.
        InvalidError: a member is unknown, missing or of a wrong type; the error names it.
    """
    try:
        if kind != "msgpack":
            return _JSON_STEP.decode(piece)
        return msgspec.convert(read_msgpack(piece), StepIn)
    except msgspec.ValidationError as error:
        raise invalid_step(error, prefix) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        where = f"{prefix}: " if prefix else ""
        raise MalformedError(f"{where}the body is no JSON: {error}", field=prefix or None) from error


def invalid_step(error: msgspec.ValidationError, prefix: str) -> InvalidError:
    """Return msgspec's error as ours: `... - at `$.reward`` below `prefix` "steps/3" names `steps/3/reward`."""
    text = str(error)
    found = _WHERE.search(text)
    # Inside a free map msgspec tells no names, only `[...]`: what stands before is all that is known.
    known = found["path"].partition("[...]")[0] if found else ""
    path = known.replace("[", "/").replace("]", "").replace(".", "/").strip("/")
    missing = re.search(r"(?:required|unknown) field `([^`]+)`", text)
    parts = [part for part in (prefix, path, missing[1] if missing else "") if part]
    field = "/".join(parts) or None
    message = text[: found.start()] if found else text
    return InvalidError(f"{field}: {message}" if field else message, field=field)


def _pieces(decoder: "msgspec.json.Decoder[Any] | msgspec.msgpack.Decoder[Any]", body: bytes) -> list[Piece]:
    try:
        found: list[Piece] = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"steps: the body cannot be parsed: {error}", field="steps") from error
    return found


def _require_count(count: int, max_steps: int) -> None:
    if count > max_steps:
        raise TooLargeError(f"{count} steps in one request, the limit is {max_steps}; split them")


def _split_lines(body: bytes, max_steps: int) -> list[Piece]:
    lines: list[Piece] = []
    for match in _LINE.finditer(body):
        line = match[0]
        if line.strip():
            lines.append(line)
            # Here and not at the end: millions of short lines would take many times the body's size.
            if len(lines) > max_steps:
                count = sum(1 for match in _LINE.finditer(body) if match[0].strip())
                _require_count(count, max_steps)
    return lines


def _msgpack_count(body: bytes) -> int | None:
    """Return the length of the array that a body claims to be, or None if it is none."""
    return _msgpack_length(memoryview(body), 0x90, 0xDC)


def _msgpack_length(view: memoryview, short: int, long: int) -> int | None:
    """Return the length that an array (0x90, 0xdc) or map (0x80, 0xde) begins with; None for anything else."""
    first = view[0] if view else 0
    if short <= first <= short + 0x0F:
        return first & 0x0F
    size = {long: 2, long + 1: 4}.get(first)
    return None if size is None else int.from_bytes(view[1 : 1 + size], "big")


def _count_first(body: bytes, max_steps: int) -> None:
    """Refuse a large array of many or of no objects before its pieces fill the memory (56 bytes for a digit)."""
    count = 0

    class Counted(msgspec.Struct):
        def __post_init__(self) -> None:
            nonlocal count
            count += 1
            if count > max_steps:
                raise ValueError("too many")

    try:
        msgspec.json.decode(body, type=list[Counted])
    except msgspec.ValidationError as error:
        if count > max_steps:
            raise TooLargeError(
                f"more than {max_steps} steps in one request, which is the limit; split them"
            ) from error
        raise invalid_step(error, "steps") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"steps: the body is no JSON: {error}", field="steps") from error


def plain_bytes(piece: Piece, limit: int, depth: int = 0) -> int:
    """Return how many bytes of a msgpack value are no binary data: those that become Python objects, one by one.

    Maps are opened and binary values, which hold images and typed arrays, skipped. Beyond `limit` any number
    above it may come back.

    Raises:
        MalformedError: a map is no msgpack, or has other keys than text.
    """
    view = memoryview(piece)
    first = view[0] if view else 0
    if 0xC4 <= first <= 0xC6:
        return 0
    entries = _msgpack_length(view, 0x80, 0xDE)
    if entries is None or depth == _WALKED_DEPTH:
        return view.nbytes
    if entries > limit:
        return entries
    try:
        found = _MAP.decode(piece)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"the body is no msgpack step: {error}") from error
    total = 0
    for name, value in found.items():
        total += len(name) + plain_bytes(value, limit - total, depth + 1)
        if total > limit:
            break
    return total


def read_msgpack(piece: Piece) -> Any:
    """Parse a msgpack body; its typed arrays become NumPy ones.

    Raises:
        MalformedError: the bytes are no msgpack, or what claims to be a typed array is none.
    """
    try:
        return _typed(msgspec.msgpack.decode(piece))
    except (msgspec.DecodeError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise MalformedError(f"the body is not msgpack: {error}") from error


def _typed(node: Any) -> Any:
    """Replace typed arrays by NumPy ones; numbers outside them are read as JSON numbers are."""
    if isinstance(node, list):
        return node if node and isinstance(node[0], float | int) else [_typed(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "__ndarray__" not in node:
        return {name: _typed(item) for name, item in node.items()}
    # NumPy reads strings such as "f4,(2" as a small language of their own.
    if not isinstance(node["dtype"], str) or not _DTYPE.fullmatch(node["dtype"]):
        raise ValueError(f"dtype {node['dtype']!r} is not numeric: give one such as '<f4', '|b1' or 'int64'")
    return np.frombuffer(node["data"], np.dtype(node["dtype"])).reshape(node["shape"])
