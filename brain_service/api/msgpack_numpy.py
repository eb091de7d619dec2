"""The arrays of openpi's clients in msgpack: maps with the bytes `__ndarray__`, `data`, `dtype`, `shape` as keys.

The form of the package msgpack-numpy without its pickled objects: only numbers and booleans, of the very size that
dtype and shape say. A NumPy scalar is `{b"__npgeneric__": true, b"data": number, b"dtype": ...}`.
"""

import re
from math import prod
from typing import Any

import msgspec
import numpy as np

from brain_service.errors import MalformedError

__all__ = ["pack", "unpack"]

_DTYPE = re.compile(r"[<>=|]?(b1|\?|f[248]|[iu][1248])")
_MAX_RANK = 8


def unpack(body: bytes) -> Any:
    """Parse a message; arrays are read-only views of `body`.

    Raises:
        MalformedError: no msgpack, or an array of objects, text or another size than it says.
    """
    try:
        return _revive(msgspec.msgpack.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"the message is not msgpack: {error}") from error


def pack(content: Any) -> bytes:
    """Return a message; NumPy arrays and scalars go as typed maps."""
    return _ENCODER.encode(content)


def _revive(node: Any) -> Any:
    if isinstance(node, list):
        return [_revive(item) for item in node]
    if not isinstance(node, dict):
        return node
    if b"__ndarray__" in node:
        return _array(node)
    if b"__npgeneric__" in node:
        return _scalar(node)
    return {name: _revive(child) for name, child in node.items()}


def _dtype(node: dict[Any, Any]) -> "np.dtype[Any]":
    named = node.get(b"dtype")
    # NumPy reads strings such as "f4,(2" as a small language of their own.
    if not isinstance(named, str) or not _DTYPE.fullmatch(named):
        raise MalformedError(
            f"an array of dtype {str(named)[:50]!r} is not taken; send numbers or booleans ('<f4')"
        )
    return np.dtype(named)


def _array(node: dict[Any, Any]) -> np.ndarray[Any, np.dtype[Any]]:
    dtype, shape, data = _dtype(node), node.get(b"shape"), node.get(b"data")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(type(n) is int and n >= 0 for n in shape):
        raise MalformedError(f"an array's shape is a list of at most {_MAX_RANK} sizes, not {str(shape)[:50]}")
    if not isinstance(data, bytes) or len(data) != prod(shape) * dtype.itemsize:
        held = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise MalformedError(f"an array of {dtype.str} {shape} holds {held} instead of its numbers")
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(node: dict[Any, Any]) -> "np.generic[Any]":
    dtype, value = _dtype(node), node.get(b"data")
    try:
        if not isinstance(value, bool | int | float):
            raise TypeError(f"{type(value).__name__} is no number")
        with np.errstate(over="ignore"):  # an infinity is refused by name, with its field
            found: np.generic[Any] = dtype.type(value)
            return found
    except (TypeError, ValueError, OverflowError) as error:
        raise MalformedError(f"a scalar of {dtype.str} cannot be {str(value)[:50]}: {error}") from error


def _typed(value: Any) -> dict[bytes, Any]:
    if isinstance(value, np.ndarray):
        data: Any = value.tobytes()
        return {b"__ndarray__": True, b"data": data, b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"no msgpack form for {type(value).__name__}")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_typed)
