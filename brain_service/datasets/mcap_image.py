"""`foxglove.CompressedImage` on protobuf alone: the message and the schema that an MCAP file carries.

The message is described here, as `example` does it for TensorFlow's: no generated code, no Foxglove SDK.
Source: `foxglove/CompressedImage.proto` of the Foxglove SDK.
"""

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

__all__ = ["IMAGE_SCHEMA", "encode_image", "image_schema"]

IMAGE_SCHEMA = "foxglove.CompressedImage"


@cache
def _files() -> Any:
    """Return the message's file and the one that it imports, as MCAP wants them: dependencies included."""
    timestamp = descriptor_pb2.FileDescriptorProto()
    timestamp_pb2.DESCRIPTOR.CopyToProto(timestamp)
    kinds = descriptor_pb2.FieldDescriptorProto
    image = descriptor_pb2.FileDescriptorProto(
        name="foxglove/CompressedImage.proto", package="foxglove", syntax="proto3", dependency=[timestamp.name]
    )
    message = image.message_type.add(name="CompressedImage")
    for name, number, kind, type_name in (
        ("timestamp", 1, kinds.TYPE_MESSAGE, ".google.protobuf.Timestamp"),
        ("data", 2, kinds.TYPE_BYTES, None),
        ("format", 3, kinds.TYPE_STRING, None),
        ("frame_id", 4, kinds.TYPE_STRING, None),
    ):
        message.field.add(name=name, number=number, type=kind, type_name=type_name, label=kinds.LABEL_OPTIONAL)
    return descriptor_pb2.FileDescriptorSet(file=[timestamp, image])


@cache
def _image_class() -> Any:
    pool = descriptor_pool.DescriptorPool()
    for file in _files().file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(IMAGE_SCHEMA))


def image_schema() -> bytes:
    """Return the serialised `FileDescriptorSet` that describes the message."""
    data: bytes = _files().SerializeToString(deterministic=True)
    return data


def encode_image(time_ns: int, frame_id: str, data: bytes, kind: str) -> bytes:
    """Return one image (the bytes of its `png` or `jpeg` file) taken at `time_ns` as a message."""
    message = _image_class()(data=data, format=kind, frame_id=frame_id)
    message.timestamp.seconds, message.timestamp.nanos = divmod(time_ns, 1_000_000_000)
    encoded: bytes = message.SerializeToString(deterministic=True)
    return encoded
