"""Pieces of a sequence: the same numbers and gradients as the whole, in less memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brain_service.model.core import init_params
from brain_service.model.signals import StepInputs
from brain_service.model.state import init_carry
from brain_service.training.remat import unroll_in_pieces
from tests.training.tasks import tiny

pytestmark = pytest.mark.slow

MODEL = tiny().model_config(3, 2)


def inputs(batch: int, length: int) -> StepInputs:
    keys = jax.random.split(jax.random.key(3), 4)
    return StepInputs(
        jax.random.normal(keys[0], (batch, length, 3)),
        jax.random.normal(keys[1], (batch, length, 2)),
        jax.random.normal(keys[2], (batch, length)),
        (jax.random.uniform(keys[3], (batch, length)) < 0.1).astype(jnp.float32),
    )


def slope(piece: int) -> Any:
    def loss(params: Any, given: StepInputs) -> Any:
        carry, outputs = unroll_in_pieces(params, MODEL, init_carry(MODEL, given.is_first.shape[0]), given, piece)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves((outputs, carry))) / given.is_first.size

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.long
def test_pieces_give_the_numbers_and_the_gradient_of_the_whole() -> None:
    params, given = init_params(MODEL, jax.random.key(1)), inputs(2, 19)
    whole, gradient = slope(0)(params, given)
    value, found = slope(8)(params, given)  # two pieces and a rest of three
    assert float(value) == pytest.approx(float(whole), rel=1e-5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_a_long_episode_takes_a_fraction_of_the_memory() -> None:
    params, given = jax.eval_shape(lambda: init_params(MODEL, jax.random.key(1))), inputs(4, 832)
    needed = [slope(piece).lower(params, given).compile().memory_analysis() for piece in (0, 64)]
    whole, pieces = (analysis.temp_size_in_bytes for analysis in needed)
    assert pieces < whole / 2, f"{pieces} bytes in pieces, {whole} at once"
