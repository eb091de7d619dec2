"""How the value of one feature is read on the short way: its type for msgspec, and its bytes or array."""

import itertools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from brain_service.spec import EpisodeSpec, Feature, FeatureSpec
from brain_service.trees import unflatten

__all__ = ["FloatLeaf", "OtherLeaf", "StepTypes", "step_types"]

_DTYPE_NAMES = {
    "float32": ("<f4", "float32"),
    "int64": ("<i8", "int64"),
    "bool": ("|b1", "bool"),
    "uint8": ("|u1", "uint8"),
}
_INT64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_ITEMS: Mapping[str, Any] = {
    "float32": float,
    "int64": _INT64,
    "bool": bool,
    "uint8": Annotated[int, Meta(ge=0, le=255)],
    "text": str,
}


class _Typed(msgspec.Struct, forbid_unknown_fields=True, rename={"is_array": "__ndarray__"}):
    """A typed array in msgpack, as `wire` reads it."""

    is_array: bool
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class _Leaf:
    """The value of one feature: the part of the step and the path there, and what it has to be."""

    def __init__(self, path: tuple[str, str], feature: Feature) -> None:
        self.path = path
        self.feature = feature

    def _typed_array(self, value: _Typed) -> np.ndarray[Any, np.dtype[Any]]:
        dtype, shape = self.feature.dtype, self.feature.shape
        if value.dtype not in _DTYPE_NAMES[dtype] or value.shape != shape:
            raise ValueError("not the array that the spec names")
        return np.frombuffer(value.data, dtype).reshape(shape)


class FloatLeaf(_Leaf):
    """A float32 feature; its values travel as bytes until all of a batch are checked at once."""

    def __init__(self, path: tuple[str, str], feature: Feature) -> None:
        super().__init__(path, feature)
        self.size = prod(feature.shape)
        self._pack = struct.Struct(f"<{self.size}f").pack
        self._depth = len(feature.shape)

    def to_bytes(self, value: Any) -> bytes:
        """Return the `size` float32 values of a decoded leaf, little-endian.

        Raises:
            ValueError: a typed array of another dtype or shape.
            OverflowError: a number beyond float32.
            struct.error: it has another size.
        """
        if self._depth == 1 and type(value) is list:
            return self._pack(*value)
        if type(value) is _Typed:
            return self._typed_array(value).tobytes()
        if self._depth == 0:
            return self._pack(value)
        for _ in range(self._depth - 1):
            value = itertools.chain.from_iterable(value)
        return self._pack(*value)


class OtherLeaf(_Leaf):
    """An integer, boolean or text feature."""

    def to_value(self, value: Any) -> Any:
        """Return a decoded leaf in the form that the log's encoder takes.

        Raises:
            ValueError: a typed array of another dtype or shape.
        """
        if type(value) is _Typed:
            return self._typed_array(value)[()]
        return np.array(value, self.feature.dtype) if self.feature.shape else value


@dataclass(frozen=True, slots=True)
class StepTypes:
    """The msgspec types of a step of one spec, and its leaves with the attributes that hold them."""

    json: type[msgspec.Struct]
    msgpack: type[msgspec.Struct]
    floats: tuple[FloatLeaf, ...]
    others: tuple[OtherLeaf, ...]
    attributes: Mapping[tuple[str, str], str]


def step_types(spec: EpisodeSpec) -> StepTypes | None:
    """Return the types of a step whose features are `spec`, or None where the short way takes no such feature."""
    parts = {"observation": spec.observation, "action": spec.action}
    leaves: list[_Leaf] = []
    attributes: dict[tuple[str, str], str] = {}
    for part, features in parts.items():
        if any(feature.dtype not in _ITEMS for feature in features.values()):
            return None
        for path, attribute in _attributes(features).items():
            attributes[part, path] = f"{part}.{attribute}"
            kind = FloatLeaf if features[path].dtype == "float32" else OtherLeaf
            leaves.append(kind((part, path), features[path]))
    return StepTypes(
        json=_step({part: _struct(features, _json_type) for part, features in parts.items()}),
        msgpack=_step({part: _struct(features, _msgpack_type) for part, features in parts.items()}),
        floats=tuple(leaf for leaf in leaves if isinstance(leaf, FloatLeaf)),
        others=tuple(leaf for leaf in leaves if isinstance(leaf, OtherLeaf)),
        attributes=attributes,
    )


def _step(parts: Mapping[str, type[msgspec.Struct]]) -> type[msgspec.Struct]:
    members: list[Any] = [
        *parts.items(),
        ("step_index", int | None, None),
        ("reward", float, 0.0),
        ("is_terminal", bool, False),
        ("timestamp_ns", _INT64 | None, None),
        ("control_role", str | None, None),
        ("episode_id", str | None, None),
    ]
    return msgspec.defstruct("Step", members, forbid_unknown_fields=True)


def _json_type(feature: Feature) -> Any:
    found = _ITEMS[feature.dtype]
    for size in reversed(feature.shape):
        found = Annotated[list[found], Meta(min_length=size, max_length=size)]  # type: ignore[valid-type]
    return found


def _msgpack_type(feature: Feature) -> Any:
    found = _json_type(feature)
    return found if feature.dtype == "text" else found | _Typed


def _struct(features: FeatureSpec, leaf_type: Callable[[Feature], Any]) -> type[msgspec.Struct]:
    def build(node: Any) -> Any:
        if isinstance(node, Feature):
            return leaf_type(node)
        fields = [(f"f{place}", build(child)) for place, child in enumerate(node.values())]
        names = {f"f{place}": name for place, name in enumerate(node)}
        return msgspec.defstruct("Part", fields, forbid_unknown_fields=True, rename=names)

    made: type[msgspec.Struct] = build(unflatten(features))
    return made


def _attributes(features: FeatureSpec) -> dict[str, str]:
    """Return for each path the attributes that lead to it in the structs of `_struct`."""
    found: dict[str, str] = {}

    def visit(node: Any, path: str, attribute: str) -> None:
        if isinstance(node, Feature):
            found[path] = attribute
            return
        for place, (name, child) in enumerate(node.items()):
            visit(child, f"{path}/{name}" if path else name, f"{attribute}.f{place}" if attribute else f"f{place}")

    visit(unflatten(features), "", "")
    return found
