"""The disturbances of training: what they touch, how often, and that they are a function of their key."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brain_service.model.core import unroll
from brain_service.model.memory import unpack_memory
from brain_service.model.signals import StepInputs
from brain_service.model.state import init_carry
from brain_service.training.config import TrainConfig
from brain_service.training.step import abstract_state, decay_mask, disturb, make_schedule, opening_carry
from tests.model.models import SMALL, params_of, random_inputs
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
    assert np.array_equal(hidden[..., 0], disturb(inputs(), config, jax.random.key(1)).previous_reward == 0.0)
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


@pytest.mark.parametrize("steps", [1, 2, 3, 50, 1000])
def test_a_short_run_learns_from_its_first_step_or_warms_up_for_a_quarter(steps: int) -> None:
    rate = make_schedule(TrainConfig(steps=steps, warmup_steps=100))
    rates = np.asarray([float(rate(step)) for step in range(steps)])
    assert rates.max() == pytest.approx(TrainConfig().learning_rate)
    assert rates.argmax() == min(100, steps // 4)
    assert steps < 4 or rates[-1] < rates.max() / 2


def test_a_sequence_from_the_middle_of_an_episode_has_a_memory_of_many_slots() -> None:
    params, rows, length = params_of(SMALL), 2, 20
    inputs = random_inputs(SMALL, rows, length)
    inside = inputs._replace(is_first=jnp.zeros_like(inputs.is_first))
    spreads = []
    for carry in (opening_carry(SMALL, params, rows), init_carry(SMALL, rows)):
        end, _ = unroll(params, SMALL, carry, inside)
        keys = unpack_memory(SMALL, end.slots, end.clock).keys
        spreads.append(min(float(np.ptp(keys[:, low:high], axis=1).max()) for low, high in level_bounds()))
    assert spreads[0] > 0.1 and spreads[1] < 1e-5


def level_bounds() -> list[tuple[int, int]]:
    """Return where the slots of each level begin and end, of the levels that have several."""
    ends = np.cumsum(SMALL.cms_sizes)
    return [(end - size, end) for size, end in zip(SMALL.cms_sizes, ends, strict=True) if size > 1]


def test_where_an_episode_begins_the_opening_state_is_a_fresh_one() -> None:
    params, inputs = params_of(SMALL), random_inputs(SMALL, 2, 6)
    for one, other in zip(
        jax.tree.leaves(unroll(params, SMALL, opening_carry(SMALL, params, 2), inputs)),
        jax.tree.leaves(unroll(params, SMALL, init_carry(SMALL, 2), inputs)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)
