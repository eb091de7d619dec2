"""Parameters between the JAX tree and the torch model: the same names, the same layout, the same bits."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from brain_service.errors import InvalidError
from brain_service.model.config import CoreModelConfig
from brain_service.model.core import Params
from brain_service.training.torch_lora.model import TorchCoreModel

__all__ = ["base_parameters", "nest", "to_jax", "to_torch"]

ADAPTER = ".adapter."
"""In the name of each parameter that an adapter adds."""


def to_torch(params: Params, config: CoreModelConfig) -> TorchCoreModel:
    """Return the torch model with a copy of these parameters, as a checkpoint or a bundle holds them.

    Raises:
        InvalidError: a parameter is missing, unknown, or of another shape or dtype than the config's.
    """
    model = TorchCoreModel(config)
    given, wanted = dict(_flatten(params)), base_parameters(model)
    strange = sorted(given.keys() ^ wanted.keys())
    if strange:
        raise InvalidError(
            f"parameters {', '.join(strange)}: missing, or unknown to a model of this config; "
            "load the config and the parameters from one checkpoint",
            field=strange[0],
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            array = np.asarray(given[name])
            if array.shape != tuple(parameter.shape) or array.dtype != np.float32:
                raise InvalidError(
                    f"parameter {name} is {array.dtype}{list(array.shape)}, the model's config wants "
                    f"float32{list(parameter.shape)}; load the config and the parameters from one checkpoint",
                    field=name,
                )
            parameter.copy_(torch.tensor(array))
    return model


def to_jax(model: TorchCoreModel) -> Params:
    """Return a copy of the model's parameters, without its adapters, as the JAX model's tree."""
    return nest(base_parameters(model))


def base_parameters(model: TorchCoreModel) -> dict[str, Tensor]:
    """Return the parameters of the model itself by name (`encoder.first.kernel`), without its adapters."""
    return {name: value for name, value in model.named_parameters() if ADAPTER not in name}


def nest(tensors: Mapping[str, Float32[Tensor, "..."]]) -> Params:
    """Return tensors as nested maps of JAX arrays, one level a dot in their names."""
    tree: Params = {}
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        folder = tree
        for part in path:
            folder = folder.setdefault(part, {})
        # A copy: the tensor's memory is written in place by the next optimiser step.
        folder[last] = jnp.asarray(tensor.detach().cpu().numpy().copy())
    return tree


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
