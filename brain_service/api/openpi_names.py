"""Which feature of the model each key of an openpi robot is: `observation/state`, `image`, `prompt`, and so on."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from brain_service.errors import InvalidError
from brain_service.spec import FeatureSpec
from brain_service.trees import flatten

__all__ = ["match_observation"]

_PREFIX = "observation/"


def match_observation(
    message: Mapping[str, Any], spec: FeatureSpec, seen: str | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a message's values by feature path, and a warning for each that the model has no use for.

    A key is the feature of that path, with or without `observation/` before it; else the only feature whose last
    name is its own, where no other key has that name. What is left over is ignored, with a warning, if it is text
    or a picture; so is a picture that is no PNG or JPEG file, but for the image that the model has `seen` in its
    training. Values are not checked.

    Raises:
        InvalidError: a number or array belongs to no feature, or two keys to the same one; the error names it.
    """
    found: dict[str, Any] = {}
    warnings: list[str] = []
    given = flatten(message, "observation") if message else {}
    for key, path in _pair(list(given), spec).items():
        value = given[key]
        if path is None and not (isinstance(value, str | bytes) or _is_picture(value)):
            raise InvalidError(
                f"observation: {key!r} is no feature of this model, which has {', '.join(spec)}",
                field=f"observation/{key}",
            )
        if path is None:
            warnings.append(f"{key}: no feature of this model; ignored")
        elif spec[path].dtype == "image" and path != seen and isinstance(value, np.ndarray):
            warnings.append(f"{key}: a picture, which this model does not see; ignored")
        elif path in found:
            raise InvalidError(f"observation: {path!r} is given twice", field=f"observation/{path}")
        else:
            found[path] = value
    return found, tuple(warnings)


def _pair(keys: list[str], spec: FeatureSpec) -> dict[str, str | None]:
    pairs: dict[str, str | None] = {}
    for key in keys:
        plain = key.removeprefix(_PREFIX)
        pairs[key] = key if key in spec else plain if plain in spec else None
    open_paths = [path for path in spec if path not in pairs.values()]
    open_keys = [key for key, path in pairs.items() if path is None]
    for key in open_keys:
        name = _last(key)
        paths = [path for path in open_paths if _last(path) == name]
        if len(paths) == 1 and sum(_last(other) == name for other in open_keys) == 1:
            pairs[key] = paths[0]
    return pairs


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _is_picture(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim >= 3
