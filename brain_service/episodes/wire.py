"""Request bodies of `POST /episodes/{id}/steps`: one step, an array of steps, or a step a line."""

import re
from typing import Any

import msgspec
import numpy as np

from brain_service.episodes.schema import StepIn
from brain_service.errors import InvalidError, MalformedError, TooLargeError

__all__ = ["invalid_step", "parse_steps"]

_JSON_STEP = msgspec.json.Decoder(StepIn)
_JSON_STEPS = msgspec.json.Decoder(list[StepIn])

_WHERE = re.compile(r" - at `(?:key in )?\$(?P<path>[^`]*)`$")


def parse_steps(body: bytes, content_type: str, max_steps: int) -> tuple[list[StepIn], bool]:
    """Return the steps and whether they came as a batch (array or NDJSON).

    `application/x-ndjson` is a step a line, `application/msgpack` and everything else (JSON) a step or an
    array. In msgpack a value may be a typed array `{"__ndarray__": true, "dtype", "shape", "data"}`.

    Raises:
        MalformedError: the bytes are no JSON, NDJSON or msgpack; an NDJSON error names the line.
        InvalidError: a member is unknown, missing or of a wrong type; the error names it.
        TooLargeError: more than `max_steps` steps.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in ("application/x-ndjson", "application/jsonl", "application/ndjson"):
        steps, batch = _parse_lines(body), True
    elif kind in ("application/msgpack", "application/x-msgpack"):
        steps, batch = _parse_msgpack(body)
    else:
        batch = body.lstrip()[:1] == b"["
        steps = _decode(_JSON_STEPS, body, "steps") if batch else [_decode(_JSON_STEP, body, "")]
    if len(steps) > max_steps:
        raise TooLargeError(f"{len(steps)} steps in one request, the limit is {max_steps}; split them")
    return steps, batch


def _parse_lines(body: bytes) -> list[StepIn]:
    lines = [line for line in body.split(b"\n") if line.strip()]
    return [_decode(_JSON_STEP, line, f"steps/{place}") for place, line in enumerate(lines)]


def _parse_msgpack(body: bytes) -> tuple[list[StepIn], bool]:
    try:
        document = _typed(msgspec.msgpack.decode(body))
    except (msgspec.DecodeError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise MalformedError(f"the body is no msgpack step: {error}") from error
    batch = isinstance(document, list)
    try:
        if isinstance(document, list):
            return msgspec.convert(document, list[StepIn]), True
        return [msgspec.convert(document, StepIn)], False
    except msgspec.ValidationError as error:
        raise invalid_step(error, "steps" if batch else "") from error


def _typed(node: Any) -> Any:
    """Replace typed arrays by NumPy ones; numbers outside them are read as JSON numbers are."""
    if isinstance(node, list):
        return node if node and isinstance(node[0], float | int) else [_typed(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "__ndarray__" not in node:
        return {name: _typed(item) for name, item in node.items()}
    dtype = np.dtype(node["dtype"])
    if dtype.kind not in "bfiu":
        raise ValueError(f"dtype {node['dtype']!r} is not numeric")
    return np.frombuffer(node["data"], dtype).reshape(node["shape"])


def _decode(decoder: "msgspec.json.Decoder[Any]", body: bytes, prefix: str) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid_step(error, prefix) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        where = f"{prefix}: " if prefix else ""
        raise MalformedError(f"{where}the body is no JSON: {error}", field=prefix or None) from error


def invalid_step(error: msgspec.ValidationError, prefix: str) -> InvalidError:
    """Return msgspec's error as ours: `... - at `$[3].reward`` below `prefix` "steps" names `steps/3/reward`."""
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
