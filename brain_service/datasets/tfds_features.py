"""`features.json` of any TFDS dataset: what its examples hold, as far as an episode of ours can hold it.

Source: `tensorflow_datasets/core/proto/feature.proto`, in proto3 JSON, and `core/example_serializer.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brain_service.errors import CorruptDataError, InvalidError
from brain_service.spec import Dtype, Feature

__all__ = ["TfdsFeatures", "read_features"]

_DTYPES: dict[str, Dtype] = {
    "bool": "bool",
    "uint8": "uint8",
    **dict.fromkeys(("int8", "int16", "int32", "int64", "uint16", "uint32"), "int64"),
    # Whatever its width, TFDS stores a float as float32.
    **dict.fromkeys(("bfloat16", "float16", "float32", "float64"), "float32"),
}
_TEXT = ("string", "object", "str")
_RAGGED = "a Sequence within a step differs in length from step to step, which no feature of ours may"


@dataclass
class TfdsFeatures:
    """Features of a step and of the episode's metadata by path, and why others cannot be read.

    The shape of an image may hold -1 where the dataset leaves it open: each episode's images then tell it.
    """

    steps: dict[str, Feature] = field(default_factory=dict)
    metadata: dict[str, Feature] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


def read_features(document: Any, name: str) -> TfdsFeatures:
    """Read the document of `features.json`; `name` stands for the file in errors.

    Raises:
        InvalidError: the dataset does not hold episodes of steps.
        CorruptDataError: a feature is described in another form than TFDS's.
    """
    try:
        return _read(document, name)
    except (AttributeError, TypeError, ValueError) as error:
        raise CorruptDataError(f"{name}: not as TFDS writes it: {error}; fetch it again") from error


def _read(document: Any, name: str) -> TfdsFeatures:
    top = _children(document)
    steps = top.get("steps") if top else None
    sequence = steps.get("sequence") if isinstance(steps, Mapping) else None
    inner = sequence.get("feature") if isinstance(sequence, Mapping) else None
    if _class_name(steps) not in ("Dataset", "Sequence") or _children(inner) is None:
        raise InvalidError(
            f"{name}: no 'steps' that is a Dataset of a FeaturesDict, so this is no RLDS dataset; "
            f"its features are {', '.join(top or {}) or 'none'}"
        )
    found = TfdsFeatures()
    _visit(inner, "", found.steps, found.unreadable)
    if "episode_metadata" in (top or {}):
        # What of the metadata cannot be read is no feature that a step would miss.
        _visit((top or {})["episode_metadata"], "", found.metadata, {})
    return found


def _class_name(node: Any) -> str:
    return str(node.get("pythonClassName", "")).rpartition(".")[2] if isinstance(node, Mapping) else ""


def _children(node: Any) -> Mapping[str, Any] | None:
    inner = node.get("featuresDict") if isinstance(node, Mapping) else None
    children = inner.get("features") if isinstance(inner, Mapping) else None
    return children if isinstance(children, Mapping) else None


def _visit(node: Any, path: str, known: dict[str, Feature], unreadable: dict[str, str]) -> None:
    children = _children(node)
    if children is not None:
        for name, child in children.items():
            _visit(child, f"{path}/{name}" if path else name, known, unreadable)
        return
    found = _leaf(node)
    if isinstance(found, Feature):
        known[path] = found
    else:
        unreadable[path] = found


def _leaf(node: Any) -> Feature | str:
    """Return the feature of a leaf, or why there is none."""
    kind = _class_name(node)
    if kind in ("Tensor", "Scalar"):
        return _tensor(node.get("tensor") or {})
    if kind == "Text":
        return Feature("text")
    if kind == "ClassLabel":
        return Feature("int64")
    if kind == "Image":
        return _image(node.get("image") or {})
    if kind in ("Sequence", "Dataset"):
        return _RAGGED
    return f"its class {kind or 'nothing'!r} is none of Tensor, Scalar, Text, ClassLabel, Image and FeaturesDict"


def _tensor(tensor: Mapping[str, Any]) -> Feature | str:
    dtype, shape = str(tensor.get("dtype")), _shape(tensor)
    if tensor.get("encoding", "none").lower() != "none":
        return f"its values are encoded as {tensor['encoding']}; write the dataset with encoding 'none'"
    if -1 in shape:
        return f"its shape {list(shape)} is open; only images may leave theirs open"
    if dtype in _TEXT:
        return Feature("text") if not shape else "it holds several texts a step"
    if dtype not in _DTYPES:
        return f"its dtype {dtype} is none of {', '.join(_DTYPES)} and string"
    return Feature(_DTYPES[dtype], shape)


def _image(image: Mapping[str, Any]) -> Feature | str:
    dtype, shape = image.get("dtype") or "uint8", _shape(image)
    if dtype != "uint8":
        return f"an image of {dtype} has no place in an episode; 8 bits a channel have"
    if len(shape) != 3:
        return f"its shape {list(shape)} is not (height, width, channels)"
    return Feature("image", shape)


def _shape(node: Mapping[str, Any]) -> tuple[int, ...]:
    dimensions = (node.get("shape") or {}).get("dimensions") or []
    return tuple(int(n) for n in dimensions)
