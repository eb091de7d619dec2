"""Tensors of the Open Inference Protocol v2: a JSON head, and behind it the bytes of those that travel as such.

Source: the protocol's REST specification and its binary tensor data extension (`Inference-Header-Content-Length`,
`binary_data_size`, `binary_data`, `binary_data_output`). Bytes are little-endian and row-major; an element of
BYTES is a 32-bit length and that many bytes. Pure functions; whatever comes in, what they raise is a `BrainError`.
"""

import itertools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from brain_service.api.bodies import encode_json
from brain_service.errors import InvalidError, MalformedError

__all__ = ["DATATYPES", "Question", "Tensor", "Wanted", "read_question", "write_answer"]

DATATYPES: Mapping[str, str] = {
    "BOOL": "|b1",
    "UINT8": "|u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "|i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""NumPy's names of the protocol's datatypes but BYTES, and BF16, which it has not."""

_MAX_RANK = 8
_LENGTH = struct.Struct("<I")
_ELSEWHERE = ("shared_memory_region", "classification")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor: an array of its shape, or for BYTES the flat list of its elements."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: "np.ndarray[Any, np.dtype[Any]] | list[bytes]" = field(repr=False)


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that is asked for; `binary` None leaves it to the request's `binary_data_output`."""

    name: str
    binary: bool | None


@dataclass(frozen=True, slots=True)
class Question:
    """An inference request. `outputs` None asks for all of them."""

    request_id: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    outputs: tuple[Wanted, ...] | None


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: list[Annotated[int, Meta(ge=0, le=2**31)]]
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Head(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    outputs: list[_Output] | None = None
    parameters: dict[str, Any] = {}


_HEAD = msgspec.json.Decoder(_Head)


def read_question(body: bytes, head_bytes: int | None) -> Question:
    """Parse a request; its first `head_bytes` (None: all) are JSON, the rest are binary tensors in their order.

    Raises:
        MalformedError: the head is longer than the body, or no JSON.
        InvalidError: a member is missing or of a wrong kind, an input stands twice, or its data is not what its
            datatype, shape and size say; the error names it.
    """
    if head_bytes is not None and not 0 <= head_bytes <= len(body):
        raise MalformedError(
            f"Inference-Header-Content-Length is {head_bytes}, the body has {len(body)} bytes; it counts those of "
            "the JSON before the binary tensors"
        )
    try:
        head = _HEAD.decode(body if head_bytes is None else memoryview(body)[:head_bytes])
    except msgspec.ValidationError as error:
        raise InvalidError(f"the request is no inference request: {error}", field="body") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(
            f"the JSON of the request cannot be parsed: {error}; where binary tensors follow it, the header "
            "Inference-Header-Content-Length says how long it is"
        ) from error
    rest = memoryview(body)[len(body) if head_bytes is None else head_bytes :]
    inputs: dict[str, Tensor] = {}
    for given in head.inputs:
        tensor, rest = _read_tensor(given, rest)
        if tensor.name in inputs:
            raise InvalidError(f"input {given.name!r} is given twice", field=given.name)
        inputs[tensor.name] = tensor
    if rest:
        raise InvalidError(f"{len(rest)} bytes follow the last binary tensor; no input claims them", field="body")
    wanted = None if head.outputs is None else tuple(_wanted(output) for output in head.outputs)
    return Question(head.id, head.parameters, inputs, wanted)


def write_answer(head: Mapping[str, Any], outputs: Sequence[tuple[Tensor, bool]]) -> "tuple[bytes, int | None]":
    """Return a response's body and, where it holds binary tensors, the length of its JSON; else None.

    `outputs` are numeric tensors, each with whether it goes as bytes.
    """
    described: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for tensor, binary in outputs:
        document: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        values = np.asarray(tensor.values, DATATYPES[tensor.datatype])
        if binary:
            parts.append(values.tobytes())
            document["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            document["data"] = values.ravel()
        described.append(document)
    text = encode_json({**head, "outputs": described})
    return (b"".join((text, *parts)), len(text)) if parts else (text, None)


def _read_tensor(given: _Input, rest: memoryview) -> tuple[Tensor, memoryview]:
    name, shape = given.name, tuple(given.shape)
    if given.datatype not in DATATYPES and given.datatype != "BYTES":
        known = ", ".join((*DATATYPES, "BYTES"))
        raise InvalidError(f"input {name!r}: datatype {given.datatype[:50]!r} is none of {known}", field=name)
    if len(shape) > _MAX_RANK:
        raise InvalidError(f"input {name!r}: {len(shape)} axes, at most {_MAX_RANK} are taken", field=name)
    _refuse_elsewhere(name, given.parameters)
    size_bytes = given.parameters.get("binary_data_size")
    if size_bytes is None:
        return Tensor(name, given.datatype, shape, _from_json(given, shape)), rest
    if given.data is not None:
        raise InvalidError(f"input {name!r} has both data and binary_data_size; send one of them", field=name)
    if type(size_bytes) is not int or not 0 <= size_bytes <= len(rest):
        raise InvalidError(
            f"input {name!r}: binary_data_size is {str(size_bytes)[:50]}, and {len(rest)} bytes of the body are "
            "left for it",
            field=name,
        )
    return Tensor(name, given.datatype, shape, _from_bytes(given, shape, rest[:size_bytes])), rest[size_bytes:]


def _from_bytes(given: _Input, shape: tuple[int, ...], data: memoryview) -> Any:
    if given.datatype == "BYTES":
        elements = _split_elements(given.name, data)
        if len(elements) != prod(shape):
            raise _wrong_count(given, len(elements))
        return elements
    dtype = np.dtype(DATATYPES[given.datatype])
    if len(data) != prod(shape) * dtype.itemsize:
        raise InvalidError(
            f"input {given.name!r}: {given.datatype} {list(shape)} takes {prod(shape) * dtype.itemsize} bytes, "
            f"binary_data_size is {len(data)}",
            field=given.name,
        )
    if given.datatype == "BOOL" and len(data) and np.frombuffer(data, np.uint8).max() > 1:
        raise InvalidError(f"input {given.name!r}: a BOOL is a byte 0 or 1", field=given.name)
    return np.frombuffer(data, dtype).reshape(shape)


def _split_elements(name: str, data: memoryview) -> list[bytes]:
    elements: list[bytes] = []
    while data:
        if len(data) < _LENGTH.size or len(data) - _LENGTH.size < _LENGTH.unpack_from(data)[0]:
            raise InvalidError(f"input {name!r}: element {len(elements)} of BYTES is cut off", field=name)
        stop = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        elements.append(bytes(data[_LENGTH.size : stop]))
        data = data[stop:]
    return elements


def _from_json(given: _Input, shape: tuple[int, ...]) -> Any:
    if given.data is None:
        raise InvalidError(f"input {given.name!r} has neither data nor binary_data_size", field=given.name)
    flat, nested = _flatten(given)
    if len(flat) != prod(shape) or (nested is not None and nested != shape):
        raise _wrong_count(given, len(flat))
    try:
        if given.datatype == "BYTES":
            return [text.encode() for text in msgspec.convert(flat, list[str])]
        with np.errstate(over="ignore"):  # an infinity is refused with its field
            array = np.array(msgspec.convert(flat, _items(given.datatype)), DATATYPES[given.datatype])
        return array.reshape(shape)
    except (msgspec.ValidationError, UnicodeEncodeError, OverflowError) as error:
        raise InvalidError(
            f"input {given.name!r}: data is not {given.datatype}: {error}", field=given.name
        ) from error


def _flatten(given: _Input) -> tuple[list[Any], tuple[int, ...] | None]:
    """Return the data row-major, and its shape where it is nested."""
    flat: list[Any] = given.data or []
    sizes = [len(flat)]
    while flat and all(type(item) is list for item in flat):
        widths = {len(item) for item in flat}
        if len(widths) > 1 or len(sizes) == _MAX_RANK:
            raise InvalidError(f"input {given.name!r}: rows of data differ in length", field=given.name)
        sizes.append(widths.pop())
        flat = list(itertools.chain.from_iterable(flat))
    return flat, tuple(sizes) if len(sizes) > 1 else None


def _items(datatype: str) -> Any:
    dtype = np.dtype(DATATYPES[datatype])
    if dtype.kind == "f":
        return list[float]
    if dtype.kind == "b":
        return list[bool]
    limits = np.iinfo(dtype)
    # msgspec bounds integers with 64-bit ones; above them NumPy itself refuses.
    return list[Annotated[int, Meta(ge=int(limits.min), le=min(int(limits.max), 2**63 - 1))]]


def _wrong_count(given: _Input, count: int) -> InvalidError:
    return InvalidError(
        f"input {given.name!r}: {count} elements do not make the shape {given.shape}", field=given.name
    )


def _wanted(output: _Output) -> Wanted:
    _refuse_elsewhere(output.name, output.parameters)
    binary = output.parameters.get("binary_data")
    if binary is not None and not isinstance(binary, bool):
        raise InvalidError(f"output {output.name!r}: binary_data is true or false", field=output.name)
    return Wanted(output.name, binary)


def _refuse_elsewhere(name: str, parameters: Mapping[str, Any]) -> None:
    for parameter in _ELSEWHERE:
        if parameter in parameters:
            raise InvalidError(f"tensor {name!r}: {parameter} is not supported here; leave it out", field=name)
