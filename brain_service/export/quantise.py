"""Weights in fewer bits: how a quantised bundle stores its parameters, and how they become float32 again.

Only the weights are quantised, and of these only the matrices, which are nearly all of a model: what a step
computes and carries on stays float32, as do biases, decay rates, keys and whatever else is small or has a meaning
of its own. `int8`: one scale for each output of a matrix (its last axis), symmetric, so that zero stays zero.
`fp16`: the matrices in half precision. The arrays alone tell how they are stored: a step needs no word about it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Float32, Int8

from brain_service.errors import InvalidError
from brain_service.export.manifest import PARITY_CAP

__all__ = ["SCALE", "dequantise", "quantise", "require_quantisation"]

SCALE = ":scale"
"""Ending of the name under which the scales of an int8 matrix are stored: `drive/kernel:scale`, shape [out]."""

_MATRIX = "kernel"
_LARGEST = 127
_HALF_MAX = float(np.finfo(np.float16).max)


def require_quantisation(quantisation: str) -> None:
    """Check that it is one that we know.

    Raises:
        InvalidError: it is not.
    """
    if quantisation not in PARITY_CAP:
        raise InvalidError(
            f"quantisation {quantisation!r} is not known; use one of {', '.join(PARITY_CAP)}", field="quantization"
        )


def quantise(params: Mapping[str, np.ndarray[Any, Any]], quantisation: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return flat float32 parameters as a bundle of this quantisation stores them, sorted by name.

    A matrix in int8 comes with its scales, shape `[out]`, under its name and `SCALE`.

    Raises:
        InvalidError: the quantisation is not known, or a weight is beyond what it can hold.
    """
    require_quantisation(quantisation)
    stored: dict[str, np.ndarray[Any, Any]] = {}
    for name, array in params.items():
        if quantisation == "none" or name.rpartition("/")[2] != _MATRIX:
            stored[name] = array
        elif quantisation == "int8":
            stored[name], stored[name + SCALE] = _int8(array)
        else:
            largest = float(np.abs(array).max(initial=0.0))
            if largest > _HALF_MAX:
                raise InvalidError(
                    f"{name} reaches {largest:.1e}, half precision ends at {_HALF_MAX:.1e}; use int8 or none",
                    field="quantization",
                )
            stored[name] = array.astype(np.float16)
    return dict(sorted(stored.items()))


def _int8(
    weights: Float32[np.ndarray, "*in out"],
) -> tuple[Int8[np.ndarray, "*in out"], Float32[np.ndarray, "out"]]:
    largest = np.abs(weights).max(axis=tuple(range(weights.ndim - 1)))
    # An output without weights has no largest; any scale gives its zeros back.
    scale = np.where(largest > 0, largest / np.float32(_LARGEST), np.float32(1)).astype(np.float32)
    return np.rint(weights / scale).clip(-_LARGEST, _LARGEST).astype(np.int8), scale


def dequantise(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored parameters as float32, NumPy or JAX arrays as they came; such as are float32 are the same."""
    return {
        name: _float32(array, params.get(name + SCALE))
        for name, array in params.items()
        if not name.endswith(SCALE)
    }


def _float32(array: Array | np.ndarray[Any, Any], scale: Array | np.ndarray[Any, Any] | None) -> Any:
    values = array if array.dtype == np.float32 else array.astype(np.float32)
    return values if scale is None else values * scale
