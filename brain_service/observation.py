"""An observation that comes with a request for an action, held against what the model was trained on."""

from typing import Any

import numpy as np

from brain_service.errors import InvalidError
from brain_service.spec import Feature, FeatureSpec, Leaf, check_values
from brain_service.trees import flatten

__all__ = ["check_observation"]


def check_observation(tree: Any, spec: FeatureSpec, seen: str | None = None) -> dict[str, Leaf]:
    """Hold a nested observation against what a model was trained on and return its arrays by path.

    Images may be left out, all but the one that the model has `seen` in its training; those that are given are
    checked. That one is the bytes of its file, or its pixels as a uint8 array of the feature's shape.

    Raises:
        InvalidError: as `flatten` and `check_values`.
    """
    given = flatten(tree, "observation")
    asked = {
        path: feature
        for path, feature in spec.items()
        if feature.dtype != "image" or path in given or path == seen
    }
    array = given.get(seen) if seen is not None else None
    if seen is None or not isinstance(array, np.ndarray):
        return check_values(given, asked, "observation")
    _require_pixels(array, asked.pop(seen), f"observation/{seen}")
    rest = {path: value for path, value in given.items() if path != seen}
    return {**check_values(rest, asked, "observation"), seen: array}


def _require_pixels(array: "np.ndarray[Any, np.dtype[Any]]", feature: Feature, field: str) -> None:
    if array.dtype != np.uint8 or array.shape != feature.shape:
        raise InvalidError(
            f"{field}: expected an image of shape {list(feature.shape)}, as PNG, JPEG or uint8 pixels; got "
            f"{array.dtype}{list(array.shape)}",
            field=field,
        )
