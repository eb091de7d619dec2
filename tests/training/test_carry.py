"""Truncated backpropagation: the state goes from one window of a stream into the next, and only there."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brain_service.datasets.loader import open_dataset
from brain_service.model.core import unroll
from brain_service.model.state import init_carry
from brain_service.training.feed import Feed
from brain_service.training.normalisation import Normaliser
from brain_service.training.sharding import make_mesh
from brain_service.training.step import init_state, make_train_step
from tests.training.tasks import tiny

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_a_window_begins_with_the_state_that_the_one_before_ended_with(dataset: Path) -> None:
    config = tiny(
        mode="streams", learning_rate=1e-8, weight_decay=0.0, previous_action_dropout=0.0, observation_noise=0.0
    )
    opened = open_dataset(dataset)
    model = config.model_config(3, 2)
    feed = Feed(opened, config, Normaliser.from_statistics(opened.statistics), make_mesh())
    state, train_step = init_state(model, config), make_train_step(model, config)
    assert not any(np.any(leaf) for leaf in state.carry)
    windows = [feed.batch(step) for step in range(3)]
    params = jax.tree.map(jnp.copy, state.params)
    for window in windows:
        state, _ = train_step(state, window)
    # The learning rate moves nothing: three windows through the trainer are one long sequence through the model.
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *(window.inputs for window in windows))
    assert joined.is_first[:, 8:].sum() > 0, "no episode begins behind the first window: the test shows nothing"
    carry, _ = jax.jit(lambda params, carry, inputs: unroll(params, model, carry, inputs))(
        params, init_carry(model, config.batch_size), joined
    )
    for found, expected in zip(state.carry, carry, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
