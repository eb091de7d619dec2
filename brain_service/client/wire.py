"""What goes over the wire: steps in msgpack with typed arrays, other bodies in JSON.

A typed array is `{"__ndarray__": true, "dtype": "<f4", "shape": [3], "data": bytes}`: a robot's float32 values
travel as they stand in memory, and the daemon takes them from there without a list in between.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from brain_service.client.errors import EncodeError

__all__ = [
    "MSGPACK",
    "JsonObject",
    "as_arrays",
    "decode_object",
    "encode_step",
    "join_steps",
    "renumber",
    "to_json",
]

MSGPACK = "application/msgpack"
JsonObject = dict[str, Any]


def _typed(value: Any) -> Any:
    """Return an array as a typed map. float64 and float16 become float32, which is what the daemon stores."""
    if not isinstance(value, np.ndarray | np.generic) and not hasattr(value, "__array__"):
        raise NotImplementedError(
            f"{type(value).__name__} has no msgpack form; give numbers, arrays, text or bytes"
        )
    array = np.asarray(value)
    if array.dtype.kind not in "bfiu":
        raise NotImplementedError(f"an array of dtype {array.dtype} is not numeric")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # beyond float32 it becomes an infinity, which the daemon refuses by name
            array = array.astype("<f4", copy=False)
    elif array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return {"__ndarray__": True, "dtype": array.dtype.str, "shape": array.shape, "data": array.tobytes()}


def _listed(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
        return np.asarray(value).tolist()
    raise NotImplementedError(f"{type(value).__name__} has no JSON form; give numbers, arrays or text")


_STEP_INDEX = b"\xaastep_index"
_INT_BYTES = {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}

_MSGPACK = msgspec.msgpack.Encoder(enc_hook=_typed)
_JSON = msgspec.json.Encoder(enc_hook=_listed)
_UNENCODABLE = (
    NotImplementedError,
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
    msgspec.MsgspecError,
)


def encode_step(step: Mapping[str, Any]) -> bytes:
    """Return a step as msgpack; later changes of the caller's arrays do not reach it.

    Raises:
        EncodeError: a value is no number, array, text, bytes or map of such, or an integer beyond 64 bits.
    """
    try:
        return _MSGPACK.encode(step)
    except _UNENCODABLE as error:
        raise EncodeError(f"the step has no msgpack form: {error}") from error


def renumber(step: bytes, index: int) -> bytes:
    """Return an encoded step with another `step_index`, which must be its first member; the rest stays as it is.

    Raises:
        EncodeError: it begins with something else.
    """
    place = 1 + len(_STEP_INDEX)
    if step[1:place] != _STEP_INDEX:
        raise EncodeError(f"a step begins with its step_index, not with {step[:place]!r}")
    rest = place + _INT_BYTES.get(step[place], 1)
    return b"".join((step[:place], _MSGPACK.encode(index), step[rest:]))


def join_steps(steps: Sequence[bytes]) -> bytes:
    """Return encoded steps as one msgpack array of them (at most 2^32 - 1), without encoding them again."""
    if len(steps) == 1:
        return steps[0]
    count = len(steps)
    head = struct.pack(">B", 0x90 | count) if count < 16 else struct.pack(">BI", 0xDD, count)
    return b"".join((head, *steps))


def to_json(document: Mapping[str, Any]) -> bytes:
    """Return a body as JSON; arrays become nested lists.

    Raises:
        EncodeError: a value has no JSON form.
    """
    try:
        return _JSON.encode(document)
    except _UNENCODABLE as error:
        raise EncodeError(f"the body has no JSON form: {error}") from error


def decode_object(body: bytes | str) -> JsonObject:
    """Return the JSON object (text) or msgpack map (bytes) of an answer; anything else is an empty one."""
    try:
        found = msgspec.json.decode(body) if isinstance(body, str) else msgspec.msgpack.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def as_arrays(tree: Any) -> Any:
    """Return nested maps with their lists as arrays: fractions float32, integers int64, truth values bool."""
    if isinstance(tree, dict):
        return {name: as_arrays(child) for name, child in tree.items()}
    if isinstance(tree, str) or tree is None:
        return tree
    array = np.asarray(tree)
    return array.astype(np.float32) if array.dtype.kind == "f" else array
