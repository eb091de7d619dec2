"""Bodies in and out on the hot paths: bounded, parsed once into typed structs, written by orjson."""

import re
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec
import numpy as np
import orjson
from fastapi import Request
from starlette.responses import Response

from brain_service.api.door import Arrivals
from brain_service.episodes.wire import read_msgpack
from brain_service.errors import (
    InvalidError,
    MalformedError,
    TooLargeError,
    UnavailableError,
    UnsupportedMediaError,
)

__all__ = [
    "JsonResponse",
    "MsgpackResponse",
    "decode",
    "decode_msgpack",
    "encode_json",
    "encode_msgpack",
    "read_body",
    "read_object",
]

T = TypeVar("T")


def encode_json(content: Any) -> bytes:
    """Return `content` as JSON; NumPy arrays become nested lists, float32 the shortest exact text."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY, default=_plain_array)


def encode_msgpack(content: Any) -> bytes:
    """Return `content` as msgpack; NumPy arrays become `{"__ndarray__": true, "dtype", "shape", "data"}`."""
    return _MSGPACK.encode(content)


class JsonResponse(Response):
    """JSON by orjson, as `encode_json` writes it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return `content` as JSON bytes."""
        return encode_json(content)


class MsgpackResponse(Response):
    """The same in msgpack, as `encode_msgpack` writes it."""

    media_type = "application/msgpack"

    def render(self, content: Any) -> bytes:
        """Return `content` as msgpack bytes."""
        return encode_msgpack(content)


def _plain_array(value: Any) -> Any:
    """Return an array that orjson does not take by itself (shape `()`, or strided) in a form that it takes.

    Raises:
        TypeError: it is no array.
    """
    if not isinstance(value, np.ndarray):
        raise TypeError(f"no JSON form for {type(value).__name__}")
    return np.ascontiguousarray(value) if value.ndim else value[()]


def _typed_array(value: Any) -> dict[str, Any]:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"no msgpack form for {type(value).__name__}")
    return {"__ndarray__": True, "dtype": value.dtype.str, "shape": value.shape, "data": value.tobytes()}


_MSGPACK = msgspec.msgpack.Encoder(enc_hook=_typed_array)


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Read the whole body.

    Raises:
        UnsupportedMediaError: it is compressed.
        TooLargeError: it is longer than `limit_bytes`, by its header or as it arrives.
        UnavailableError: there is no room for it beside all the others that are arriving.
    """
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaError(
            f"bodies are taken uncompressed, not with Content-Encoding {coding[:100]!r}; leave the header out"
        )
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise TooLargeError(f"body of {declared} bytes is over the limit of {limit_bytes}; send smaller batches")
    arrivals: Arrivals = request.app.state.services.arrivals
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if not arrivals.hold(size - len(part), size):
                raise UnavailableError(
                    f"{arrivals.held_bytes} bytes of requests are arriving at once, the limit is "
                    f"capture.max_queued_bytes = {arrivals.limit_bytes}; send a smaller body, or send it later"
                )
            if size > limit_bytes:
                raise TooLargeError(f"body is over the limit of {limit_bytes} bytes; send smaller batches")
            parts.append(part)
    finally:
        arrivals.hold(size, 0)
    return b"".join(parts)


def decode(body: bytes, kind: type[T]) -> T:
    """Parse JSON into a msgspec struct.

    Raises:
        MalformedError: not JSON (NaN and Infinity are not JSON either).
        InvalidError: a field is missing, unknown or of the wrong type; the error names it.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(error, kind) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"the body is not JSON: {error}") from error


def decode_msgpack(body: bytes, kind: type[T]) -> T:
    """Parse msgpack, which may hold typed arrays, into a msgspec struct.

    Raises:
        MalformedError: not msgpack, or a typed array that is none.
        InvalidError: a field is missing, unknown or of the wrong type; the error names it.
    """
    try:
        return msgspec.convert(read_msgpack(body), kind)
    except msgspec.ValidationError as error:
        raise _invalid(error, kind) from error


def _invalid(error: msgspec.ValidationError, kind: Any) -> InvalidError:
    where = re.search(r"at `\$\.?([^`]*)`", str(error))
    named = re.search(r"(?:unknown|missing required) field `([^`]*)`", str(error))
    field = "/".join(part for part in (where and where[1].replace(".", "/"), named and named[1]) if part)
    said = str(error).replace("Object", "the body")
    return InvalidError(f"{said}{_known(kind, field)}", field=field or "body")


def _known(kind: Any, field: str) -> str:
    """Return the valid values of a field that has a set of them; the known fields, if there is no such field."""
    members = msgspec.structs.fields(kind)
    hint = next((member.type for member in members if member.encode_name == field), None)
    if hint is None:
        return f"; known: {', '.join(member.encode_name for member in members)}"
    found = [value for part in (hint, *get_args(hint)) if get_origin(part) is Literal for value in get_args(part)]
    return f"; valid: {', '.join(map(repr, found))}" if found else ""


def read_object(body: bytes) -> dict[str, Any]:
    """Parse a body into a JSON object; an empty body is `{}`. Integers keep their value, however large.

    Raises:
        MalformedError: not JSON.
        InvalidError: JSON, but no object.
    """
    try:
        document = msgspec.json.decode(body or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidError(f"the body is a JSON {type(document).__name__}; send an object", field="body")
    return document
