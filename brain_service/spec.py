"""What an observation or action looks like: named features, their check, and their flat vector.

An observation or action is a flat or nested map of named arrays. Paths join names with `/`, as TFDS does in
its examples (`observation/arm/joints`). The spec of an episode is declared or fixed by its first step; every
later step, every dataset, every bundle and every `/infer` request is held against the same spec.

An image is a PNG or JPEG file as it came from the camera: it is held against its spec by its header, stored as
it is, and no part of a vector. Observations may hold images, actions may not.

Only NumPy is imported here: the inference worker of a backend that lives on the system Python uses it too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from brain_service.errors import InvalidError
from brain_service.image_header import CHANNELS, MAX_SIDE, check_image, infer_image
from brain_service.trees import join_path, reject_folders

if TYPE_CHECKING:
    from jaxtyping import Float32

__all__ = [
    "Dtype",
    "EpisodeSpec",
    "Feature",
    "FeatureSpec",
    "Leaf",
    "check_values",
    "from_vector",
    "infer_spec",
    "to_vector",
    "vector_size",
]

Dtype = Literal["float32", "int64", "bool", "uint8", "text", "image"]
DTYPES: tuple[str, ...] = get_args(Dtype)

_MAX_RANK = 8
# Numbers a step. A declaration of a few bytes must not make anybody reserve gigabytes for what it names.
_MAX_NUMBERS = 2**22

Leaf = np.ndarray[Any, np.dtype[Any]] | str | bytes
"""One value of a step: an array of the feature's dtype and shape, text, or an image.

An image is the bytes of its file, or the reference `images/<sha256>.png` (or `.jpg`) of one that is stored.
"""


@dataclass(frozen=True, slots=True)
class Feature:
    """Dtype and shape of one named value in one step; `()` is a scalar. Text has no shape.

    An image has `(height, width, channels)` in pixels, with 1, 3 or 4 channels of 8 bits.
    """

    dtype: Dtype
    shape: tuple[int, ...] = ()

    @property
    def is_numeric(self) -> bool:
        """Whether its values are arrays, and so part of the flat vector: neither text nor image."""
        return self.dtype not in ("text", "image")

    def to_json(self) -> dict[str, Any]:
        """Return `{"dtype": ..., "shape": [...]}`."""
        return {"dtype": self.dtype, "shape": list(self.shape)}

    @staticmethod
    def from_json(document: Any, field: str) -> "Feature":
        """Parse `{"dtype": "float32", "shape": [3]}`; `field` names it in errors.

        Raises:
            InvalidError: unknown key or dtype, or a shape that is not a list of at most 8 positive integers, or of
                more than 2^22 numbers in all.
        """
        if not isinstance(document, Mapping) or not set(document) <= {"dtype", "shape"} or "dtype" not in document:
            raise InvalidError(
                f"{field}: a feature is {{'dtype': ..., 'shape': [...]}}, not {document!r}", field=field
            )
        dtype, shape = document["dtype"], document.get("shape", [])
        if dtype not in DTYPES:
            raise InvalidError(f"{field}: dtype {dtype!r} is none of {', '.join(DTYPES)}", field=field)
        if not isinstance(shape, list | tuple) or not all(type(n) is int and n > 0 for n in shape):
            raise InvalidError(f"{field}: shape {shape!r} is not a list of positive integers", field=field)
        if len(shape) > _MAX_RANK or (dtype != "image" and prod(shape) > _MAX_NUMBERS):
            raise InvalidError(
                f"{field}: a shape has at most {_MAX_RANK} axes and {_MAX_NUMBERS} numbers, got {str(shape)[:99]}",
                field=field,
            )
        if dtype == "text" and shape:
            raise InvalidError(f"{field}: text has no shape, got {shape!r}", field=field)
        if dtype == "image" and (len(shape) != 3 or shape[2] not in CHANNELS or max(shape) > MAX_SIDE):
            raise InvalidError(
                f"{field}: an image has shape [height, width, channels] with 1, 3 or 4 channels and at most "
                f"{MAX_SIDE} pixels a side, got {shape!r}",
                field=field,
            )
        return Feature(dtype, tuple(shape))


FeatureSpec = Mapping[str, Feature]
"""Features by path, in sorted path order."""


@dataclass(frozen=True, slots=True)
class EpisodeSpec:
    """The features of a step's observation and of its action."""

    observation: FeatureSpec
    action: FeatureSpec

    def __post_init__(self) -> None:
        """Refuse images among the actions.

        Raises:
            InvalidError: there is one; names it.
        """
        for path, feature in self.action.items():
            if feature.dtype == "image":
                raise InvalidError(
                    f"action/{path}: an action is numbers or text; images belong into the observation",
                    field=f"action/{path}",
                )

    @property
    def image_paths(self) -> list[str]:
        """The paths of the observation's images, in sorted order."""
        return [path for path, feature in self.observation.items() if feature.dtype == "image"]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form that episode headers, datasets and bundles carry."""
        return {
            "observation": {path: feature.to_json() for path, feature in self.observation.items()},
            "action": {path: feature.to_json() for path, feature in self.action.items()},
        }

    @staticmethod
    def from_json(document: Any) -> "EpisodeSpec":
        """Parse `{"observation": {path: feature}, "action": {path: feature}}`; nested maps are flattened.

        Raises:
            InvalidError: a part is missing or empty, or a feature is wrong, stands twice, or is also a folder of
            others; the error names it.
        """
        if not isinstance(document, Mapping) or set(document) != {"observation", "action"}:
            raise InvalidError("features: give exactly 'observation' and 'action'", field="features")
        return EpisodeSpec(
            _parse_part(document["observation"], "observation"), _parse_part(document["action"], "action")
        )


def _parse_part(document: Any, field: str) -> FeatureSpec:
    if not isinstance(document, Mapping) or not document:
        raise InvalidError(f"features/{field}: give a map of at least one feature", field=f"features/{field}")
    found: dict[str, Feature] = {}

    def visit(node: Any, path: str) -> None:
        if isinstance(node, Mapping) and not isinstance(node.get("dtype"), str):
            if not node:
                raise InvalidError(f"features/{field}: {path} is empty", field=f"features/{field}/{path}")
            for name, child in node.items():
                visit(child, join_path(path, name, field))
        elif path in found:
            raise InvalidError(f"features/{field}/{path} is given twice", field=f"features/{field}/{path}")
        else:
            found[path] = Feature.from_json(node, f"features/{field}/{path}")

    for name, child in document.items():
        visit(child, join_path("", name, field))
    reject_folders(found, f"features/{field}")
    _require_few_numbers(found, f"features/{field}")
    return dict(sorted(found.items()))


def _require_few_numbers(found: FeatureSpec, field: str) -> None:
    numbers = vector_size(found)
    if numbers > _MAX_NUMBERS:
        raise InvalidError(f"{field}: {numbers} numbers a step, the limit is {_MAX_NUMBERS}", field=field)


def infer_spec(flat: Mapping[str, Any], field: str) -> FeatureSpec:
    """Derive the spec from the first step's values.

    JSON numbers are float32 and JSON booleans bool; typed arrays keep their kind: floats are float32, uint8
    stays uint8, other integers are int64. Bytes are an image, and so is text that holds one in base64.

    Raises:
        InvalidError: a value is ragged, empty, mixed or of no known kind, bytes that are no whole PNG or JPEG, or
            also a folder of others; or it is larger than what may be declared.
    """
    reject_folders(flat, field)
    found = {path: _infer(value, f"{field}/{path}") for path, value in flat.items()}
    for path, feature in found.items():
        # A log whose features cannot be declared could be written, and never be read again.
        Feature.from_json(feature.to_json(), f"{field}/{path}")
    _require_few_numbers(found, field)
    return found


def _infer(value: Any, field: str) -> Feature:
    if isinstance(value, str | bytes | bytearray | memoryview):
        shape = infer_image(value if isinstance(value, str) else bytes(value), field)
        return Feature("text") if shape is None else Feature("image", shape)
    typed = isinstance(value, np.ndarray | np.generic)
    array = _as_array(value, field)
    if array.size == 0:
        raise InvalidError(f"{field} has no elements", field=field)
    dtypes: dict[str, Dtype] = {"b": "bool", "f": "float32", "i": "float32", "u": "float32"}
    if typed:
        dtypes |= {"i": "int64", "u": "uint8" if array.dtype == np.uint8 else "int64"}
    return Feature(dtypes[array.dtype.kind], array.shape)


def check_values(flat: Mapping[str, Any], spec: FeatureSpec, field: str) -> dict[str, Leaf]:
    """Hold the values of one step against the spec and return them as arrays of its dtypes.

    Whether the image that a reference names is there is for its store to say.

    Raises:
        InvalidError: a name is missing or unknown, or a value has another shape or kind, is NaN or infinite
            (in float32), does not fit its integer range, or is no whole image. The error names the field.
    """
    if flat.keys() != spec.keys():
        missing, unknown = sorted(spec.keys() - flat.keys()), sorted(flat.keys() - spec.keys())
        name = (unknown or missing)[0]
        raise InvalidError(
            f"{field}: "
            + "; ".join(
                [f"unknown {', '.join(unknown)}"] * bool(unknown)
                + [f"missing {', '.join(missing)}"] * bool(missing)
            )
            + f"; this episode or model has {', '.join(spec)}",
            field=f"{field}/{name}",
        )
    return {path: _check(flat[path], feature, f"{field}/{path}") for path, feature in spec.items()}


def _check(value: Any, feature: Feature, field: str) -> Leaf:
    if feature.dtype == "image":
        return check_image(value, feature.shape, field)
    if feature.dtype == "text" or isinstance(value, str):
        if feature.dtype == "text" and isinstance(value, str):
            return value
        raise InvalidError(f"{field}: expected {feature.dtype}, got {type(value).__name__}", field=field)
    array = _as_array(value, field)
    if array.shape != feature.shape:
        raise InvalidError(f"{field}: expected shape {list(feature.shape)}, got {list(array.shape)}", field=field)
    if (array.dtype.kind == "b") != (feature.dtype == "bool"):
        found = "booleans" if array.dtype.kind == "b" else "numbers"
        raise InvalidError(f"{field}: expected {feature.dtype}, got {found}", field=field)
    if feature.dtype == "bool":
        return array.astype(np.bool_, copy=False)
    if feature.dtype == "float32":
        with np.errstate(over="ignore"):
            floats = array.astype(np.float32, copy=False)
        if not np.isfinite(floats).all():
            raise InvalidError(f"{field}: holds NaN, an infinity or a number beyond float32", field=field)
        return floats
    return _check_integers(array, feature, field)


def _check_integers(array: np.ndarray[Any, np.dtype[Any]], feature: Feature, field: str) -> Leaf:
    limits = np.iinfo(feature.dtype)
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.floor(array)).all()):
        raise InvalidError(f"{field}: expected {feature.dtype}, got fractions, NaN or an infinity", field=field)
    # Compared as Python numbers: 2**63 as a float64 would slip past a comparison in floating point.
    if array.size and not (limits.min <= int(array.min()) and int(array.max()) <= limits.max):
        raise InvalidError(f"{field}: beyond {feature.dtype} ({limits.min} to {limits.max})", field=field)
    return array.astype(feature.dtype)


def _as_array(value: Any, field: str) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise InvalidError(f"{field}: rows differ in length", field=field) from error
    if array.dtype.kind not in "bfiu":
        found = "null" if value is None else "something other than numbers of one kind"
        raise InvalidError(f"{field}: expected numbers or booleans, got {found}", field=field)
    if array.dtype.kind != "b" and not isinstance(value, np.ndarray) and _holds_bool(value):
        raise InvalidError(f"{field}: mixes booleans and numbers", field=field)
    return array


def _holds_bool(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(
            _holds_bool(item) if isinstance(item, list | tuple) else item is True or item is False
            for item in value
        )
    return isinstance(value, bool)


def vector_size(spec: FeatureSpec) -> int:
    """Return the length of the flat vector, shape `[D]`: the element counts of all numeric features, summed."""
    return sum(prod(feature.shape) for feature in spec.values() if feature.is_numeric)


def to_vector(values: Mapping[str, Leaf], spec: FeatureSpec) -> "Float32[np.ndarray, 'D']":
    """Concatenate checked values into one float32 vector (shape `[vector_size(spec)]`), in sorted path order.

    Integers and booleans are cast to float32; text and images are left out.
    """
    parts = [np.ravel(values[path]) for path, feature in spec.items() if feature.is_numeric]
    return np.concatenate(parts).astype(np.float32, copy=False) if parts else np.zeros(0, np.float32)


def from_vector(vector: "Float32[np.ndarray, 'D']", spec: FeatureSpec) -> dict[str, Leaf]:
    """Cut a flat vector (shape `[vector_size(spec)]`) back into named arrays of the spec's shapes and dtypes.

    Integers are rounded and kept inside their range, booleans are `value >= 0.5`.
    """
    values: dict[str, Leaf] = {}
    start = 0
    for path, feature in spec.items():
        if not feature.is_numeric:
            continue
        stop = start + prod(feature.shape)
        part = vector[start:stop].reshape(feature.shape)
        start = stop
        if feature.dtype == "float32":
            values[path] = part.astype(np.float32)
        elif feature.dtype == "bool":
            values[path] = part >= 0.5
        else:
            limits = np.iinfo(feature.dtype)
            values[path] = np.clip(np.rint(part), limits.min, limits.max).astype(feature.dtype)
    return values
