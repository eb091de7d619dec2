"""The laws that every backend and every trainer relies on."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import Jaxpr, JaxprEqn

from brain_service.model.config import PRESETS, CoreModelConfig
from brain_service.model.core import CoreModel, init_params, step, unroll
from brain_service.model.layers import product_dtype
from brain_service.model.signals import StepInputs
from brain_service.model.state import Carry, carry_bounds, carry_shapes, init_carry
from tests.model.models import (
    DISCRETE,
    SEEING,
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


def assert_steps_are_the_sequence(config: CoreModelConfig, batch: int, length: int) -> None:
    """Run both forms over a sequence with resets in its middle and compare every output and the last state."""
    params = params_of(config)
    inputs = random_inputs(config, batch, length)
    is_first = inputs.is_first.at[0, length // 3].set(1.0).at[batch - 1, length // 2].set(1.0)
    inputs = inputs._replace(is_first=is_first)
    last, together = jit_unroll(params, config, init_carry(config, batch), inputs)
    carry = init_carry(config, batch)
    for t in range(length):
        carry, outputs = jit_step(params, config, carry, at(inputs, t))
        assert largest_difference(outputs, jax.tree.map(lambda whole, t=t: whole[:, t], together)) <= 1e-5, t
    assert largest_difference(carry, last) <= 1e-5


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("batch", [1, 3])
# `tpu_large` differs from `tpu_optimized` in its sizes alone, and takes gigabytes here.
@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"tpu_large"}))
def test_every_preset_steps_as_it_unrolls(preset: str, batch: int) -> None:
    assert_steps_are_the_sequence(PRESETS[preset](obs_dim=9, action_dim=2), batch, 12)


@pytest.mark.parametrize(
    "config", [replace(SMALL, associative_wave=True), replace(SMALL, wave_pairs=0), DISCRETE, SEEING], ids=str
)
def test_every_kind_of_model_steps_as_it_unrolls(config: CoreModelConfig) -> None:
    assert_steps_are_the_sequence(config, 3, 16)


def test_the_wave_runs_in_parallel_rounds_on_accelerators_only() -> None:
    def loops(platform: str, associative: bool) -> int:
        config = replace(SMALL, associative_wave=associative)
        arguments = params_of(config), config, init_carry(config, 2), random_inputs(config, 2, 16)
        lowered = jit_unroll.trace(*arguments).lower(lowering_platforms=(platform,))
        return str(lowered.as_text()).count("stablehlo.while")

    # One loop is the cell's; the other, where there is one, the wave's.
    found = {(platform, ask): loops(platform, ask) for platform in ("cpu", "tpu") for ask in (False, True)}
    assert found == {("cpu", False): 2, ("cpu", True): 2, ("tpu", False): 2, ("tpu", True): 1}


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
    _, alone = jit_unroll(params, SMALL, init_carry(SMALL, 1), jax.tree.map(lambda x: x[1:2], inputs))
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
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.array_equal(one[:, :cut], other[:, :cut])
        assert not np.array_equal(one[:, cut], other[:, cut])


def test_every_state_is_finite_and_within_its_bound_over_100_000_steps() -> None:
    scale = jnp.asarray([[1.0], [1e3]])  # ordinary inputs in one row, absurd ones in the other
    params = jax.tree.map(lambda leaf: leaf * 3.0, params_of(SMALL, seed=3))

    @jax.jit
    def rollout(key: jax.Array) -> tuple[jax.Array, ...]:
        def advance(
            state: tuple[Carry, tuple[jax.Array, ...]], key: jax.Array
        ) -> tuple[tuple[Carry, tuple[jax.Array, ...]], jax.Array]:
            carry, largest = state
            seen, acted, rewarded = jax.random.split(key, 3)
            inputs = StepInputs(
                scale * jax.random.normal(seen, (2, SMALL.obs_dim)),
                scale * jax.random.normal(acted, (2, SMALL.action_dim)),
                scale[:, 0] * jax.random.normal(rewarded, (2,)),
                jnp.zeros((2,)),
            )
            carry, outputs = step(params, SMALL, carry, inputs)
            # NaN passes through maximum, so that one bad step anywhere shows.
            largest = tuple(jnp.maximum(top, jnp.abs(now).max()) for top, now in zip(largest, carry, strict=True))
            finite = jnp.all(jnp.asarray([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(outputs)]))
            return (carry, largest), finite

        start = init_carry(SMALL, 2), tuple(jnp.zeros(()) for _ in carry_bounds(SMALL))
        (_, largest), finite = jax.lax.scan(advance, start, jax.random.split(key, 100_000))
        return (*largest, finite.all())

    *largest, finite = rollout(jax.random.key(0))
    assert finite
    for (name, bound), found in zip(carry_bounds(SMALL).items(), largest, strict=True):
        assert 0.0 < found <= bound * (1 + 1e-5), name


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_outputs_respect_their_limits(scale: float) -> None:
    _, outputs = jit_unroll(
        params_of(SMALL), SMALL, init_carry(SMALL, BATCH), random_inputs(SMALL, BATCH, LENGTH, scale=scale)
    )
    assert np.abs(outputs.action_mean).max() <= SMALL.action_limit
    assert outputs.action_log_std.min() >= SMALL.log_std_min
    assert outputs.action_log_std.max() <= SMALL.log_std_max


@pytest.mark.parametrize("config", [SMALL, DISCRETE, SEEING], ids=["continuous", "discrete", "image"])
def test_gradients_reach_every_parameter_and_are_finite(config: CoreModelConfig) -> None:
    inputs = random_inputs(config, 2, LENGTH, resets=0.05)

    def objective(params: dict[str, object]) -> jax.Array:
        _, outputs = CoreModel(config).apply({"params": params}, init_carry(config, 2), inputs)
        return sum((jnp.sum(jnp.square(part)) for part in jax.tree.leaves(outputs)), jnp.zeros(()))

    gradient = jax.jit(jax.grad(objective))(params_of(config))
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


def test_bfloat16_products_leave_parameters_state_and_outputs_float32_and_numbers_near() -> None:
    quick = replace(SMALL, compute_dtype="bfloat16")
    params, inputs = params_of(SMALL), random_inputs(SMALL, BATCH, LENGTH, resets=0.1)
    traced = jax.make_jaxpr(lambda p: unroll(p, quick, init_carry(quick, BATCH), inputs))(params)
    factors = [str(eq.invars[1].aval) for eq in _equations(traced.jaxpr) if eq.primitive.name == "dot_general"]
    assert sum(factor.startswith("bfloat16[") for factor in factors) >= 15
    assert {leaf.dtype for leaf in jax.tree.leaves(init_params(quick, jax.random.key(0)))} == {np.dtype("float32")}
    found, exact = (jit_unroll(params, config, init_carry(SMALL, BATCH), inputs) for config in (quick, SMALL))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}
    assert 0.0 < largest_difference(found[1].action_mean, exact[1].action_mean) < 0.1


def test_auto_takes_float32_on_a_cpu() -> None:
    assert product_dtype(SMALL) == (jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    assert product_dtype(replace(SMALL, compute_dtype="bfloat16")) == jnp.bfloat16


def test_the_image_moves_the_outputs_and_a_missing_or_wrong_one_is_refused() -> None:
    params, inputs = params_of(SEEING), at(random_inputs(SEEING, 2, 1), 0)
    assert inputs.image is not None
    dark = inputs._replace(image=jnp.zeros_like(inputs.image))
    _, seen = jit_step(params, SEEING, init_carry(SEEING, 2), inputs)
    _, blind = jit_step(params, SEEING, init_carry(SEEING, 2), dark)
    assert largest_difference(seen.action_mean, blind.action_mean) > 1e-3
    for wrong in (None, inputs.image[:, :5]):
        with pytest.raises(ValueError, match=r"image has shape .*\(9, 6, 2\)"):
            step(params, SEEING, init_carry(SEEING, 2), inputs._replace(image=wrong))
    with pytest.raises(ValueError, match="image_shape is"):
        step(params_of(SMALL), SMALL, init_carry(SMALL, 2), inputs)


def test_an_image_encoder_adds_nothing_to_the_state() -> None:
    assert carry_shapes(SEEING) == carry_shapes(SMALL) == carry_shapes(DISCRETE)


def test_discrete_actions_answer_the_likeliest_choice_and_its_logits() -> None:
    _, outputs = jit_unroll(
        params_of(DISCRETE), DISCRETE, init_carry(DISCRETE, BATCH), random_inputs(DISCRETE, BATCH, 9)
    )
    assert outputs.action_logits is not None and outputs.action_logits.shape == (BATCH, 9, 2, 3, 4)
    expected = np.linspace(-1, 1, 4)[np.asarray(outputs.action_logits).argmax(axis=-1)]
    np.testing.assert_allclose(outputs.action_mean, expected, atol=1e-5)
    assert len(np.unique(expected)) > 1


def test_the_step_uses_only_operations_that_accelerators_compile() -> None:
    def names(config: CoreModelConfig) -> set[str]:
        inputs = at(random_inputs(config, 1, 1), 0)
        traced = jax.make_jaxpr(lambda p, c, i: step(p, config, c, i))(
            params_of(config), Carry(*init_carry(config, 1)), inputs
        )
        return {equation.primitive.name for equation in _equations(traced.jaxpr)}

    refused = {"gather", "scatter", "sort", "while", "scan", "cond", "dynamic_slice", "cumsum", "argmax", "conv"}
    assert not names(SMALL) & refused
    assert not names(DISCRETE) & refused


def _equations(jaxpr: Jaxpr) -> list[JaxprEqn]:
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += _equations(inner)
    return found
