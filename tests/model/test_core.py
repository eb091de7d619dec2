"""The laws that every backend and every trainer relies on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import Jaxpr, JaxprEqn

from brain_service.model.config import PRESETS, CoreModelConfig
from brain_service.model.core import CoreModel, init_params, step
from brain_service.model.signals import StepInputs
from brain_service.model.state import Carry, carry_bounds, carry_shapes, init_carry
from tests.model.models import (
    SMALL,
    at,
    jit_step,
    jit_unroll,
    largest_difference,
    params_of,
    random_inputs,
)

LENGTH, BATCH = 23, 3  # longer than three periods of the slowest memory level


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    resets=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_step_by_step_is_the_same_as_a_sequence(seed: int, scale: float, resets: float) -> None:
    params = params_of(SMALL)
    inputs = random_inputs(SMALL, BATCH, LENGTH, seed=seed, scale=scale, resets=resets)
    last, together = jit_unroll(params, SMALL, init_carry(SMALL, BATCH), inputs)
    carry = init_carry(SMALL, BATCH)
    for t in range(LENGTH):
        carry, outputs = jit_step(params, SMALL, carry, at(inputs, t))
        expected = jax.tree.map(lambda whole, t=t: whole[:, t], together)
        size = max(1.0, scale)  # observations pass through to the next-observation head
        assert largest_difference(outputs, expected) <= 1e-5 * size
    assert largest_difference(carry, last) <= 1e-5


@pytest.mark.parametrize(("preset", "associative"), [("development", False), ("pi5_optimized", True)])
def test_presets_step_as_they_unroll(preset: str, associative: bool) -> None:
    config = PRESETS[preset](obs_dim=9, action_dim=2, associative_wave=associative)
    params = params_of(config)
    inputs = random_inputs(config, 2, 12, resets=0.2)
    last, together = jit_unroll(params, config, init_carry(config, 2), inputs)
    carry = init_carry(config, 2)
    for t in range(12):
        carry, outputs = jit_step(params, config, carry, at(inputs, t))
    assert largest_difference(outputs, jax.tree.map(lambda whole: whole[:, -1], together)) <= 1e-5
    assert largest_difference(carry, last) <= 1e-5


def test_a_sequence_may_be_cut_anywhere_and_its_state_carried_over() -> None:
    params = params_of(SMALL)
    first, second = (random_inputs(SMALL, BATCH, LENGTH, seed=seed) for seed in (1, 2))
    second = second._replace(is_first=jnp.zeros_like(second.is_first))
    middle, _ = jit_unroll(params, SMALL, init_carry(SMALL, BATCH), first)
    last, rest = jit_unroll(params, SMALL, middle, second)
    carry = middle
    for t in range(LENGTH):
        carry, outputs = jit_step(params, SMALL, carry, at(second, t))
        assert largest_difference(outputs, jax.tree.map(lambda whole, t=t: whole[:, t], rest)) <= 1e-5
    assert largest_difference(carry, last) <= 1e-5


def test_rows_of_a_batch_do_not_touch_each_other() -> None:
    params = params_of(SMALL)
    inputs = random_inputs(SMALL, BATCH, LENGTH, resets=0.1)
    _, together = jit_unroll(params, SMALL, init_carry(SMALL, BATCH), inputs)
    _, alone = jit_unroll(params, SMALL, init_carry(SMALL, 1), StepInputs(*(x[1:2] for x in inputs)))
    assert largest_difference(alone, jax.tree.map(lambda x: x[1:2], together)) <= 1e-5


def test_the_first_step_of_an_episode_forgets_any_state_and_ignores_the_past() -> None:
    params = params_of(SMALL)
    start = random_inputs(SMALL, BATCH, LENGTH, seed=1)
    carry, _ = jit_unroll(params, SMALL, init_carry(SMALL, BATCH), start)
    first = at(random_inputs(SMALL, BATCH, 1, seed=2), 0)
    other_past = first._replace(
        previous_action=first.previous_action + 5.0, previous_reward=first.previous_reward - 3.0
    )
    fresh = jit_step(params, SMALL, init_carry(SMALL, BATCH), first)
    assert largest_difference(jit_step(params, SMALL, carry, other_past), fresh) == 0.0


def test_without_a_reset_the_state_matters() -> None:
    params = params_of(SMALL)
    inputs = random_inputs(SMALL, BATCH, LENGTH, seed=1)
    carry, _ = jit_unroll(params, SMALL, init_carry(SMALL, BATCH), inputs)
    later = at(inputs, LENGTH - 1)
    _, kept = jit_step(params, SMALL, carry, later)
    _, fresh = jit_step(params, SMALL, init_carry(SMALL, BATCH), later)
    assert largest_difference(kept.action_mean, fresh.action_mean) > 1e-3


def test_no_prediction_depends_on_a_later_input() -> None:
    params = params_of(SMALL)
    inputs = random_inputs(SMALL, BATCH, LENGTH)
    cut = 11
    changed = StepInputs(
        inputs.observation.at[:, cut:].set(7.0),
        inputs.previous_action.at[:, cut:].set(-7.0),
        inputs.previous_reward.at[:, cut:].set(7.0),
        inputs.is_first,
    )
    _, before = jit_unroll(params, SMALL, init_carry(SMALL, BATCH), inputs)
    _, after = jit_unroll(params, SMALL, init_carry(SMALL, BATCH), changed)
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one[:, :cut], other[:, :cut])
        assert not np.array_equal(one[:, cut], other[:, cut])


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_every_state_stays_within_its_bound_over_a_long_rollout(scale: float) -> None:
    params = jax.tree.map(lambda leaf: leaf * 3.0, params_of(SMALL, seed=3))
    bounds = carry_bounds(SMALL)
    carry = init_carry(SMALL, 2)
    largest = dict.fromkeys(bounds, 0.0)
    for round_ in range(50):
        inputs = random_inputs(SMALL, 2, 400, seed=round_, scale=scale)
        inputs = inputs._replace(is_first=jnp.zeros_like(inputs.is_first))
        carry, outputs = jit_unroll(params, SMALL, carry, inputs)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((carry, outputs)))
        for name, array in carry._asdict().items():
            largest[name] = max(largest[name], float(np.abs(array).max()))
    for name, bound in bounds.items():
        assert largest[name] <= bound * (1 + 1e-5), name


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_outputs_respect_their_limits(scale: float) -> None:
    _, outputs = jit_unroll(
        params_of(SMALL), SMALL, init_carry(SMALL, BATCH), random_inputs(SMALL, BATCH, LENGTH, scale=scale)
    )
    assert np.abs(outputs.action_mean).max() <= SMALL.action_limit
    assert outputs.action_log_std.min() >= SMALL.log_std_min
    assert outputs.action_log_std.max() <= SMALL.log_std_max


def test_gradients_reach_every_parameter_and_are_finite() -> None:
    inputs = random_inputs(SMALL, 2, LENGTH, resets=0.05)

    def objective(params: dict[str, object]) -> jax.Array:
        _, outputs = CoreModel(SMALL).apply({"params": params}, init_carry(SMALL, 2), inputs)
        return sum((jnp.sum(jnp.square(part)) for part in outputs), jnp.zeros(()))

    gradient = jax.jit(jax.grad(objective))(params_of(SMALL))
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


def test_shapes_of_state_and_outputs_follow_the_config() -> None:
    carry, outputs = jit_step(
        params_of(SMALL), SMALL, init_carry(SMALL, BATCH), at(random_inputs(SMALL, BATCH, 1), 0)
    )
    assert {name: array.shape for name, array in carry._asdict().items()} == {
        name: (BATCH, size) for name, size in carry_shapes(SMALL).items()
    }
    assert len(carry) <= 4 and all(array.dtype == jnp.float32 for array in carry)
    assert outputs.action_mean.shape == outputs.action_log_std.shape == (BATCH, 2, 3)
    assert outputs.next_observation.shape == (BATCH, 5)
    assert outputs.reward.shape == outputs.value.shape == (BATCH,)


def test_the_same_key_gives_the_same_parameters() -> None:
    one, same, other = (init_params(SMALL, jax.random.key(seed)) for seed in (0, 0, 1))
    assert largest_difference(one, same) == 0.0
    assert largest_difference(one, other) > 0.0


def test_the_step_uses_only_operations_that_accelerators_compile() -> None:
    def names(config: CoreModelConfig) -> set[str]:
        inputs = at(random_inputs(config, 1, 1), 0)
        traced = jax.make_jaxpr(lambda p, c, i: step(p, config, c, i))(
            params_of(config), Carry(*init_carry(config, 1)), inputs
        )
        return {equation.primitive.name for equation in _equations(traced.jaxpr)}

    refused = {"gather", "scatter", "sort", "while", "scan", "cond", "dynamic_slice", "cumsum", "argmax", "conv"}
    assert not names(SMALL) & refused


def _equations(jaxpr: Jaxpr) -> list[JaxprEqn]:
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += _equations(inner)
    return found
