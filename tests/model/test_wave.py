from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_service.model.config import CoreModelConfig
from brain_service.model.core import init_params
from brain_service.model.state import init_carry
from brain_service.model.wave import Wave, wave_sequence, wave_step
from tests.model.models import SMALL, jit_unroll, params_of, random_inputs


def gates(config: CoreModelConfig, encoded: jax.Array) -> tuple[jax.Array, jax.Array]:
    params = init_params(config, jax.random.key(0))["wave"]
    decay, signal = Wave(config).apply({"params": params}, encoded)
    return decay, signal


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), associative=st.booleans())
def test_a_sequence_is_its_steps_one_by_one(seed: int, associative: bool) -> None:
    rng = np.random.default_rng(seed)
    decay = jnp.asarray(rng.random((2, 17, 4)) * (rng.random((2, 17, 1)) > 0.1), jnp.float32)
    signal = jnp.asarray(rng.standard_normal((2, 17, 4)), jnp.float32)
    wave = jnp.asarray(rng.standard_normal((2, 4)), jnp.float32)
    whole = wave_sequence(wave, decay, signal, associative=associative)
    for t in range(17):
        wave = wave_step(wave, decay[:, t], signal[:, t])
        np.testing.assert_allclose(whole[:, t], wave, atol=1e-5)


def test_a_quiet_wave_keeps_an_impulse_for_hundreds_of_steps() -> None:
    config = replace(SMALL, d_w=64)
    decay, _ = gates(config, jnp.zeros((1, 832, config.d_e), jnp.float32))
    impulse = jnp.ones((1, config.d_w), jnp.float32)
    kept = wave_sequence(impulse, decay, jnp.zeros_like(decay), associative=False)
    assert (kept[0, 255] > 0.8).sum() >= config.d_w // 8  # slow channels hold it
    assert (kept[0, 831] > 0.8).sum() >= 2
    assert (kept[0, 255] < 0.1).sum() >= config.d_w // 4  # and quick ones let go


def test_what_the_first_step_showed_still_moves_the_wave_300_steps_later() -> None:
    params, carry = params_of(SMALL), init_carry(SMALL, 1)
    calm = random_inputs(SMALL, 1, 300, scale=0.1)
    shown = calm._replace(observation=calm.observation.at[:, 0].set(3.0))
    (one, _), (other, _) = jit_unroll(params, SMALL, carry, calm), jit_unroll(params, SMALL, carry, shown)
    assert float(jnp.abs(one.wave - other.wave).max()) > 1e-3


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_no_channel_decays_slower_than_the_config_allows_nor_grows(size: float) -> None:
    encoded = size * jax.random.normal(jax.random.key(1), (2, 50, SMALL.d_e))
    decay, signal = gates(SMALL, encoded)
    assert float(decay.max()) <= np.exp(-1.0 / SMALL.wave_max_steps) * (1 + 1e-6)
    assert float(decay.min()) >= 0.0
    # The input's scale is what keeps the state bounded: |signal| <= sqrt(1 - decay^2).
    assert (jnp.abs(signal) <= jnp.sqrt(jnp.maximum(1 - decay**2, 1e-6)) * (1 + 1e-5)).all()


def test_time_constants_start_spread_from_the_least_to_the_greatest() -> None:
    config = replace(SMALL, d_w=64, wave_min_steps=2.0, wave_max_steps=10_000.0)
    decay, _ = gates(config, jnp.zeros((1, 1, config.d_e), jnp.float32))
    constants = -1.0 / np.log(np.asarray(decay[0, 0], np.float64))
    assert constants.min() == pytest.approx(2.0, rel=0.1)
    assert constants.max() == pytest.approx(5_000.0, rel=0.1)
    assert (np.diff(constants) > 0).all()
