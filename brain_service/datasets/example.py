"""`tf.train.Example` without TensorFlow: one flat map of float, integer and byte lists.

The message is written straight from arrays, and read as views where it has the form that every writer gives it
(packed lists, one of a kind): no number becomes a Python object, and a long episode is not copied. Bytes of any
other form go to protobuf, which decides whether they are an example. It has the message described in a pool of
its own, so that it does not clash with TensorFlow's registration in a process that has both.
Source: `tensorflow/core/example/{example,feature}.proto`, and protobuf's encoding guide.
"""

from collections.abc import Mapping, Set
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from jaxtyping import Bool, Float32, Integer

from brain_service.datasets.varint import pack_varints, varint
from brain_service.datasets.wire import bytes_at, find_spans, floats_at, integers_at
from brain_service.errors import CorruptDataError

__all__ = ["Values", "decode_example", "encode_example", "encode_parts"]

Values = Float32[np.ndarray, " n"] | Integer[np.ndarray, " n"] | Bool[np.ndarray, " n"] | list[bytes]
"""One feature of an example: a flat list of one of the three kinds that the format knows.

Booleans and all integers are written as int64 and come back as that.
"""


def _example_class() -> Any:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")

    def add(message: Any, name: str, number: int, kind: Any, **extra: Any) -> None:
        label = extra.pop("label", kinds.LABEL_OPTIONAL)
        message.field.add(name=name, number=number, type=kind, label=label, **extra)

    for name, kind in (
        ("BytesList", kinds.TYPE_BYTES),
        ("FloatList", kinds.TYPE_FLOAT),
        ("Int64List", kinds.TYPE_INT64),
    ):
        message = file.message_type.add(name=name)
        add(message, "value", 1, kind, label=kinds.LABEL_REPEATED)
        if kind != kinds.TYPE_BYTES:
            message.field[0].options.packed = True
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes_list", "float_list", "int64_list"), start=1):
        type_name = f".tensorflow.{name.title().replace('_', '')}"
        add(feature, name, number, kinds.TYPE_MESSAGE, type_name=type_name, oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, kinds.TYPE_STRING)
    add(entry, "value", 2, kinds.TYPE_MESSAGE, type_name=".tensorflow.Feature")
    add(
        features,
        "feature",
        1,
        kinds.TYPE_MESSAGE,
        label=kinds.LABEL_REPEATED,
        type_name=".tensorflow.Features.FeatureEntry",
    )
    example = file.message_type.add(name="Example")
    add(example, "features", 1, kinds.TYPE_MESSAGE, type_name=".tensorflow.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


_Example = _example_class()


_BYTES, _FLOATS, _INTS = 0x0A, 0x12, 0x1A
"""Tags of the three kinds of list in a `Feature`."""
# Images are not copied.
_LARGE_BYTES = 1024
_LENGTH_DELIMITED = b"\x0a"
_VALUE = b"\x12"


def encode_example(features: Mapping[str, Values]) -> bytes:
    """Return a serialised `tf.train.Example`; equal features give equal bytes.

    They are those of protobuf's deterministic form, whose implementations differ only in where a key stands that
    begins another one: here it comes first.
    float32 arrays become float lists, integer and boolean arrays int64 lists, lists of bytes byte lists.

    Raises:
        TypeError: an array has another dtype.
    """
    return b"".join(encode_parts(features))


def encode_parts(features: Mapping[str, Values]) -> list[bytes | memoryview]:
    """Return what `encode_example` does as parts to be written one after another; float arrays are not copied.

    Raises:
        TypeError: an array has another dtype.
    """
    parts: list[bytes | memoryview] = []
    # In the order of the keys' UTF-8 bytes, as protobuf's deterministic form has them.
    for key in sorted(features, key=str.encode):
        tag, values = _list_of(key, features[key])
        values_bytes = sum(map(len, values))
        feature = bytes([tag]) + varint(values_bytes)
        value = _VALUE + varint(len(feature) + values_bytes) + feature
        name = key.encode()
        entry = _LENGTH_DELIMITED + varint(len(name)) + name + value
        parts.append(_LENGTH_DELIMITED + varint(len(entry) + values_bytes) + entry)
        parts += values
    size_bytes = sum(map(len, parts))
    return [_LENGTH_DELIMITED + varint(size_bytes), *parts]


def _list_of(key: str, values: Values) -> tuple[int, list[bytes | memoryview]]:
    """Return the tag of a feature's kind, and the serialised list."""
    if isinstance(values, list):
        return _BYTES, _byte_list(values)
    if values.dtype == np.float32:
        floats = np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8).data
        return _FLOATS, [_LENGTH_DELIMITED + varint(len(floats)), floats] if len(floats) else []
    if values.dtype.kind in "iub" and values.dtype != np.uint64:
        packed = pack_varints(values)
        return _INTS, [_LENGTH_DELIMITED + varint(len(packed)), packed] if packed else []
    raise TypeError(f"{key}: an example holds float32, integers or bytes, not {values.dtype}")


def _byte_list(values: list[bytes]) -> list[bytes | memoryview]:
    if any(len(value) > _LARGE_BYTES for value in values):
        return [part for value in values for part in (_LENGTH_DELIMITED + varint(len(value)), value)]
    # Most texts of an episode are the same at every step.
    made = {value: _LENGTH_DELIMITED + varint(len(value)) + value for value in set(values)}
    return [b"".join([made[value] for value in values])]


def decode_example(data: bytes, name: str, wanted: Set[str] | None = None) -> dict[str, Values]:
    """Parse a serialised `tf.train.Example`; `name` stands for its place in errors.

    Of its features those that are `wanted` may be all that comes back. Arrays may be views of `data`: do not write
    to them.

    Raises:
        CorruptDataError: the bytes are not an example.
    """
    found = _read(data, wanted)
    return _parse(data, name) if found is None else found


def _read(data: bytes, wanted: Set[str] | None) -> dict[str, Values] | None:
    """Read the form that every writer gives it; None for any other."""
    found: dict[str, Values] = {}
    for key, span in (find_spans(data) or {}).items():
        if wanted is not None and key not in wanted:
            continue
        if span.kind == "float":
            floats = floats_at(data, span)
            # A small view, kept, would keep the whole record with it.
            found[key] = floats.copy() if floats.nbytes < len(data) // 4 else floats
            continue
        values = bytes_at(data, span) if span.kind == "bytes" else integers_at(data, span)
        if values is None:
            return None
        found[key] = values
    return found or None


def _parse(data: bytes, name: str) -> dict[str, Values]:
    example = _Example()
    try:
        example.ParseFromString(data)
    except DecodeError as error:
        raise CorruptDataError(f"{name}: not a tf.train.Example: {error}") from error
    found: dict[str, Values] = {}
    for key, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        if kind == "float_list":
            found[key] = np.array(feature.float_list.value, np.float32)
        elif kind == "int64_list":
            found[key] = np.array(feature.int64_list.value, np.int64)
        else:
            found[key] = list(feature.bytes_list.value)
    return found
