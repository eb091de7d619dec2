"""The torch objective against the JAX objective."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_service.model.config import CoreModelConfig
from brain_service.model.core import unroll
from brain_service.model.state import init_carry
from brain_service.training import objective
from brain_service.training.torch_lora.objective import losses, to_tensors
from brain_service.training.torch_lora.parameters import base_parameters, to_torch
from brain_service.training.torch_lora.signals import fresh_carry
from tests.model.models import DISCRETE, SEEING, SMALL, params_of, random_inputs

BATCH, LENGTH = 3, 12


def batch_of(config: CoreModelConfig, seed: int) -> objective.Sequences:
    """Return a batch with resets, padding and steps that nobody is to imitate."""
    rng = np.random.default_rng(seed)

    def mask(share: float) -> jax.Array:
        return jax.numpy.asarray(rng.random((BATCH, LENGTH)) < share, np.float32)

    action = rng.uniform(-1.0, 1.0, (BATCH, LENGTH, config.action_dim))
    if config.action_choices:
        action = np.round((action + 1) / 2 * (config.action_choices - 1)) / (config.action_choices - 1) * 2 - 1
    real = mask(0.8)
    return objective.Sequences(
        random_inputs(config, BATCH, LENGTH, seed=seed, resets=0.2),
        jax.numpy.asarray(action, np.float32),
        jax.numpy.asarray(3.0 * rng.standard_normal((BATCH, LENGTH)), np.float32),
        mask(0.2),
        real,
        real * mask(0.9),
        real * mask(0.5),
        real * mask(0.8),
    )


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, action_horizon=1), DISCRETE, SEEING], ids=str)
@given(seed=st.integers(0, 2**16))
@settings(max_examples=6)
def test_every_part_of_the_loss_is_that_of_jax(config: CoreModelConfig, seed: int) -> None:
    sequences, params = batch_of(config, seed), params_of(config)
    _, outputs = jax.jit(unroll, static_argnums=1)(params, config, init_carry(config, BATCH), sequences.inputs)
    expected = objective.losses(outputs, sequences)
    batch = to_tensors(sequences)
    with torch.no_grad():
        _, found = to_torch(params, config).unroll(fresh_carry(config, BATCH), batch.inputs)
        parts = losses(found, batch)
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        assert float(parts[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-5), name


def test_the_slopes_of_the_loss_are_those_of_jax() -> None:
    sequences, params = batch_of(SMALL, 1), params_of(SMALL)

    def cost(params: object) -> jax.Array:
        _, outputs = unroll(params, SMALL, init_carry(SMALL, BATCH), sequences.inputs)  # type: ignore[arg-type]
        return objective.losses(outputs, sequences)["loss"]

    expected = jax.tree.leaves(jax.jit(jax.grad(cost))(params))
    model, batch = to_torch(params, SMALL), to_tensors(sequences)
    _, outputs = model.unroll(fresh_carry(SMALL, BATCH), batch.inputs)
    torch.autograd.backward(losses(outputs, batch)["loss"])
    # JAX orders a tree's leaves by their names.
    found = [
        value.grad for _, value in sorted(base_parameters(model).items(), key=lambda item: item[0].split("."))
    ]
    for slope, other in zip(expected, found, strict=True):
        assert other is not None
        assert np.abs(np.asarray(slope) - other.numpy()).max() <= 1e-5


def test_the_copy_of_a_batch_holds_every_array_of_it() -> None:
    sequences = batch_of(SEEING, 3)
    copied = to_tensors(sequences)
    for name in sequences._fields[1:]:
        assert np.array_equal(getattr(copied, name).numpy(), getattr(sequences, name)), name
    for name in sequences.inputs._fields:
        assert np.array_equal(getattr(copied.inputs, name).numpy(), getattr(sequences.inputs, name)), name
    assert to_tensors(batch_of(SMALL, 3)).inputs.image is None
