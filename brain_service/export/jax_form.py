"""The policy step as StableHLO: `step.jaxexport`, with the parameters as arguments. Imports JAX."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from brain_service.export.parity import Stepper
from brain_service.export.policy import make_policy_step
from brain_service.model.config import CoreModelConfig
from brain_service.model.state import carry_shapes
from brain_service.training.normalisation import Normaliser

__all__ = ["PLATFORMS", "compile_step", "load_step", "model_step"]

PLATFORMS = ("cpu", "cuda", "tpu")


def compile_step(
    config: CoreModelConfig, normaliser: Normaliser, params: Mapping[str, np.ndarray[Any, Any]]
) -> bytes:
    """Return the step for any number of rows, for every platform, taking parameters as they are stored."""
    # A worker compiles it for one row, and for batches of several sessions.
    (rows,) = export.symbolic_shape("rows")

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *sizes), jnp.float32)

    exported = export.export(jax.jit(make_policy_step(config, normaliser)), platforms=PLATFORMS)(
        {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in params.items()},
        tuple(shape(size) for size in carry_shapes(config).values()),
        shape(config.obs_dim),
        shape(config.action_dim),
        shape(),
        shape(),
        *([jax.ShapeDtypeStruct((rows, *config.image_shape), jnp.uint8)] if config.image_shape else []),
    )
    return bytes(exported.serialize())


def load_step(data: bytes, params: Mapping[str, np.ndarray[Any, Any]], carry: Mapping[str, int]) -> Stepper:  # noqa: ARG001  as every form
    """Return the step ready to run with the parameters inside, as a worker compiles it."""
    call: Stepper = export.deserialize(bytearray(data)).call
    stored = dict(params)
    step: Stepper = jax.jit(lambda *arguments: call(stored, *arguments))
    return step


def model_step(
    config: CoreModelConfig, normaliser: Normaliser, params: Mapping[str, np.ndarray[Any, Any]]
) -> Stepper:
    """Return the model itself ready to run, which every form is held against."""
    step: Stepper = partial(jax.jit(make_policy_step(config, normaliser)), jax.device_put(dict(params)))
    return step
