"""The disturbances of training: what they touch, how often, and that they are a function of their key."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brain_service.model.signals import StepInputs
from brain_service.training.config import TrainConfig
from brain_service.training.step import abstract_state, decay_mask, disturb
from tests.training.tasks import tiny

B, T, D, A = 64, 96, 3, 2
QUIET: dict[str, Any] = {"previous_action_dropout": 0.0, "observation_noise": 0.0}


def inputs() -> StepInputs:
    ones = jnp.ones((B, T))
    return StepInputs(jnp.ones((B, T, D)), jnp.ones((B, T, A)), ones, jnp.zeros((B, T)).at[:, 0].set(1.0))


def test_without_disturbances_nothing_changes() -> None:
    disturbed = disturb(inputs(), TrainConfig(**QUIET), jax.random.key(0))
    for before, after in zip(inputs(), disturbed, strict=True):
        np.testing.assert_array_equal(before, after)


def test_previous_actions_are_hidden_whole_at_the_given_rate() -> None:
    config = TrainConfig(**QUIET | {"previous_action_dropout": 0.3})
    hidden = np.asarray(disturb(inputs(), config, jax.random.key(1)).previous_action) == 0.0
    assert (hidden[..., 0] == hidden[..., 1]).all()
    assert hidden.mean() == pytest.approx(0.3, abs=0.03)


def test_noise_has_the_given_spread() -> None:
    config = TrainConfig(**QUIET | {"observation_noise": 0.1})
    noise = np.asarray(disturb(inputs(), config, jax.random.key(2)).observation) - 1.0
    assert noise.std() == pytest.approx(0.1, rel=0.05)
    assert noise.mean() == pytest.approx(0.0, abs=0.005)


def test_the_same_key_disturbs_in_the_same_way() -> None:
    one, two, other = (disturb(inputs(), TrainConfig(), jax.random.key(seed)) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one.observation, two.observation)
    assert not np.array_equal(one.observation, other.observation)


def test_decay_leaves_vectors_and_initial_keys_alone() -> None:
    config = tiny()
    params = abstract_state(config.model_config(3, 2), config).params
    mask = {
        jax.tree_util.keystr(path): kept for path, kept in jax.tree_util.tree_leaves_with_path(decay_mask(params))
    }
    assert mask["['cell']['memory']['initial_keys']"] is False
    assert all(decays == name.endswith("['kernel']") for name, decays in mask.items())
