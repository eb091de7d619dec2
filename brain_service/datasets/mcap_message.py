"""Protobuf messages made of features, with the schema that an MCAP file carries: no generated code.

Foxglove and rerun both plot the fields of such messages; of JSON rerun keeps only the bytes. Features nest as
messages do. An array is a repeated field in row-major order, one of uint8 is `bytes`. It is proto2, which writes a
zero as well, so that a reader tells it from nothing.
Source: https://mcap.dev/spec/registry (protobuf), and protobuf's `descriptor.proto`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from brain_service.spec import Feature, FeatureSpec
from brain_service.trees import unflatten

__all__ = ["MessageType"]

_PACKAGE = "continuon"
_KINDS = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "float32": _KINDS.TYPE_FLOAT,
    "int64": _KINDS.TYPE_INT64,
    "uint8": _KINDS.TYPE_UINT32,
    "bool": _KINDS.TYPE_BOOL,
    "text": _KINDS.TYPE_STRING,
}


class MessageType:
    """The message `continuon.<name>` that holds one value of each feature; images have messages of their own."""

    def __init__(self, name: str, features: FeatureSpec) -> None:
        file = descriptor_pb2.FileDescriptorProto(
            name=f"{_PACKAGE}/{name}.proto", package=_PACKAGE, syntax="proto2"
        )
        self.name = f"{_PACKAGE}.{name}"
        self._features = features
        self._places: dict[str, tuple[str, ...]] = {}
        leaves = {path: (path, feature) for path, feature in features.items()}
        self._fill(file.message_type.add(name=name), f".{self.name}", unflatten(leaves), ())
        self.schema: bytes = descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString(deterministic=True)
        """The serialised `FileDescriptorSet` that describes the message."""
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        self._class: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName(self.name))

    @property
    def fields(self) -> dict[str, str]:
        """The dotted field of each feature's path: letters, digits and `_` alone."""
        return {path: ".".join(place) for path, place in self._places.items()}

    def _fill(self, message: Any, scope: str, tree: Mapping[str, Any], above: tuple[str, ...]) -> None:
        """Give a message a field for each child of a tree."""
        names = _identifiers(tree)
        for number, (name, child) in enumerate(tree.items(), start=1):
            field = message.field.add(name=names[name], number=number, label=_KINDS.LABEL_OPTIONAL)
            # What protobuf would make of it drops each `_`, and names that differ in those alone would clash.
            field.json_name = names[name]
            place = (*above, names[name])
            if isinstance(child, tuple):
                path, feature = child
                self._places[path] = place
                _describe(field, feature)
            else:
                # Fields and inner types share one scope.
                inner = _free(f"Group{number}", names.values())
                field.type, field.type_name = _KINDS.TYPE_MESSAGE, f"{scope}.{inner}"
                self._fill(message.nested_type.add(name=inner), f"{scope}.{inner}", child, place)

    def encode(self, values: Mapping[str, Any]) -> bytes:
        """Return a message of values by path: arrays of the feature's shape and dtype, or text."""
        message = self._class()
        for path, place in self._places.items():
            feature, value, holder = self._features[path], values[path], message
            for name in place[:-1]:
                holder = getattr(holder, name)
            if not feature.shape:
                setattr(holder, place[-1], value if isinstance(value, str) else value.item())
            elif feature.dtype == "uint8":
                setattr(holder, place[-1], np.ascontiguousarray(value).tobytes())
            else:
                getattr(holder, place[-1]).extend(np.ravel(value).tolist())
        encoded: bytes = message.SerializeToString(deterministic=True)
        return encoded


def _describe(field: Any, feature: Feature) -> None:
    if feature.shape and feature.dtype == "uint8":
        field.type = _KINDS.TYPE_BYTES
        return
    field.type = _TYPES[feature.dtype]
    if feature.shape:
        field.label = _KINDS.LABEL_REPEATED
        field.options.packed = True


def _identifiers(names: Iterable[str]) -> dict[str, str]:
    """Return a name of protobuf's for each: what it has no letter for becomes `_`, and no two are the same."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)
        plain = f"_{plain}" if plain[:1].isdigit() else plain
        found[name] = _free(plain, found.values())
    return found


def _free(name: str, taken: Iterable[str]) -> str:
    """Return the name, with as many `_` behind it as make it one that is not taken."""
    known = set(taken)
    while name in known:
        name += "_"
    return name
