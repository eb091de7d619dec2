"""Long sequences in bounded memory: the backward pass keeps the states between pieces and runs the rest again.

Source: Chen et al., "Training deep nets with sublinear memory cost" (arXiv 1604.06174).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float32, Shaped

from brain_service.model.config import CoreModelConfig
from brain_service.model.core import Params, unroll
from brain_service.model.signals import StepInputs, StepOutputs
from brain_service.model.state import Carry

__all__ = ["unroll_in_pieces"]


def unroll_in_pieces(
    params: Params, model: CoreModelConfig, carry: Carry, inputs: StepInputs, piece: int
) -> tuple[Carry, StepOutputs]:
    """Do `unroll` on inputs of shape `[B, T, ...]`, `piece` time steps at a time; 0 does all T at once.

    The numbers are those of `unroll`; the gradient costs one more forward pass, and the memory of one piece plus
    a state for each of the others.
    """
    length = inputs.is_first.shape[1]
    if not piece or length <= piece:
        return unroll(params, model, carry, inputs)
    whole = length // piece * piece

    def run(carry: Carry, part: StepInputs) -> tuple[Carry, StepOutputs]:
        return unroll(params, model, carry, part)

    pieces = jax.tree.map(partial(_split, whole=whole, piece=piece), inputs)
    carry, found = jax.lax.scan(jax.checkpoint(run, prevent_cse=False), carry, pieces)
    outputs = jax.tree.map(_join, found)
    if whole < length:
        carry, rest = run(carry, jax.tree.map(lambda array: array[:, whole:], inputs))
        outputs = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), outputs, rest)
    return carry, outputs


def _split(array: Shaped[Array, "B T *X"], whole: int, piece: int) -> Shaped[Array, "pieces B piece *X"]:
    rows, rest = array.shape[0], array.shape[2:]
    return array[:, :whole].reshape(rows, whole // piece, piece, *rest).swapaxes(0, 1)


def _join(array: Float32[Array, "pieces B piece *X"]) -> Float32[Array, "B whole *X"]:
    rows, rest = array.shape[1], array.shape[3:]
    return array.swapaxes(0, 1).reshape(rows, -1, *rest)
