"""`tf.train.Example` on protobuf alone: one flat map of float, integer and byte lists.

The message is described here, in a descriptor pool of its own, so that it neither needs TensorFlow nor clashes
with TensorFlow's registration of the same names in a process that has both.
Source: `tensorflow/core/example/{example,feature}.proto`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from jaxtyping import Float32, Int64

from brain_service.datasets.wire import bytes_at, find_spans, floats_at, integers_at
from brain_service.errors import CorruptDataError

__all__ = ["Values", "decode_example", "encode_example"]

Values = Float32[np.ndarray, " n"] | Int64[np.ndarray, " n"] | list[bytes]
"""One feature of an example: a flat list of one of the three kinds that the format knows."""


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


def encode_example(features: Mapping[str, Values]) -> bytes:
    """Return a serialised `tf.train.Example`; equal features give equal bytes.

    float32 arrays become float lists, int64 arrays int64 lists, lists of bytes byte lists.

    Raises:
        TypeError: an array has another dtype.
    """
    example = _Example()
    for key, values in features.items():
        feature = example.features.feature[key]
        if isinstance(values, list):
            feature.bytes_list.value.extend(values)
        elif values.dtype == np.float32:
            # A packed list is its field header and the little-endian floats: parsing that copies memory once,
            # where `extend` would box every float.
            floats = np.ascontiguousarray(values, dtype="<f4").tobytes()
            feature.float_list.ParseFromString(b"\x0a" + _varint(len(floats)) + floats)
        elif values.dtype == np.int64:
            feature.int64_list.value.extend(values.tolist())
        else:
            raise TypeError(f"{key}: an example holds float32, int64 or bytes, not {values.dtype}")
    data: bytes = example.SerializeToString(deterministic=True)
    return data


def decode_example(data: bytes, name: str) -> dict[str, Values]:
    """Parse a serialised `tf.train.Example`; `name` stands for its place in errors.

    Raises:
        CorruptDataError: the bytes are not an example.
    """
    found = _decode_canonical(data)
    return _decode_any(data, name) if found is None else found


def _decode_canonical(data: bytes) -> dict[str, Values] | None:
    """Decode without an object for every number; None where the layout is not the usual one."""
    found: dict[str, Values] = {}
    for key, span in (find_spans(data) or {}).items():
        if span.kind == "float":
            found[key] = floats_at(data, span)
            continue
        values = bytes_at(data, span) if span.kind == "bytes" else integers_at(data, span)
        if values is None:
            return None
        found[key] = values
    return found or None


def _decode_any(data: bytes, name: str) -> dict[str, Values]:
    example = _Example()
    try:
        example.ParseFromString(data)
    except DecodeError as error:
        raise CorruptDataError(f"{name}: not a tf.train.Example: {error}") from error
    found: dict[str, Values] = {}
    for key, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        if kind == "float_list":
            packed = feature.float_list.SerializeToString()
            found[key] = np.frombuffer(packed, "<f4", offset=len(packed) - 4 * len(feature.float_list.value))
        elif kind == "int64_list":
            found[key] = np.array(feature.int64_list.value, np.int64)
        else:
            found[key] = list(feature.bytes_list.value)
    return found


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
