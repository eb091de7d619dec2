from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_service.model.config import PRESETS, CoreModelConfig
from brain_service.model.state import init_carry
from brain_service.model.wave import Wave, WaveDrive, wave_sequence, wave_step
from tests.model.models import SMALL, jit_unroll, params_of, random_inputs


def drive_of(config: CoreModelConfig, encoded: jax.Array) -> WaveDrive:
    drive, _ = Wave(config).init_with_output(jax.random.key(0), encoded, jnp.zeros(encoded.shape[:-1]))
    found: WaveDrive = drive
    return found


jit_sequence = jax.jit(wave_sequence, static_argnames="associative")
jit_step = jax.jit(wave_step)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**16), associative=st.booleans(), pairs=st.sampled_from([0, 2, 3]))
def test_a_sequence_is_its_steps_one_by_one(seed: int, associative: bool, pairs: int) -> None:
    rng = np.random.default_rng(seed)
    decay = rng.random((2, 17, 7)) * (rng.random((2, 17, 1)) > 0.1)
    decay[..., pairs : 2 * pairs] = decay[..., :pairs]
    angle = jnp.asarray(rng.uniform(0, np.pi, pairs), jnp.float32)
    drive = WaveDrive(
        jnp.asarray(decay, jnp.float32),
        jnp.asarray(rng.standard_normal((2, 17, 7)), jnp.float32),
        jnp.cos(angle),
        jnp.sin(angle),
    )
    wave = jnp.asarray(rng.standard_normal((2, 7)), jnp.float32)
    whole = jit_sequence(wave, drive, associative=associative)
    for t in range(17):
        wave = jit_step(wave, drive._replace(decay=drive.decay[:, t], signal=drive.signal[:, t]))
        np.testing.assert_allclose(whole[:, t], wave, atol=1e-5)


def test_a_pair_is_one_complex_number_that_turns_and_shrinks() -> None:
    angle = jnp.asarray([0.3])
    drive = WaveDrive(jnp.full((1, 40, 3), 0.9), jnp.zeros((1, 40, 3)), jnp.cos(angle), jnp.sin(angle))
    states = np.asarray(wave_sequence(jnp.asarray([[1.0, 0.5, 2.0]]), drive, associative=False))[0]
    turned = (1.0 + 0.5j) * (0.9 * np.exp(0.3j)) ** np.arange(1, 41)
    np.testing.assert_allclose(states[:, 0] + 1j * states[:, 1], turned, atol=1e-5)
    np.testing.assert_allclose(states[:, 2], 2.0 * 0.9 ** np.arange(1, 41), atol=1e-5)


def test_fresh_pairs_tell_apart_the_inputs_of_as_many_steps_as_they_are_where_plain_channels_blur_them() -> None:
    def explained(pairs: int) -> float:
        """Share of the variance of the input 16 steps ago that a linear readout of the wave explains."""
        config = replace(SMALL, d_w=32, wave_pairs=pairs)
        drive = drive_of(config, jnp.zeros((1, 2000, config.d_e)))
        inputs = np.random.default_rng(0).choice([-1.0, 1.0], 2000).astype(np.float32)
        drive = drive._replace(signal=jnp.asarray(inputs)[None, :, None] * jnp.ones((1, 1, 32)))
        states = np.asarray(wave_sequence(jnp.zeros((1, 32)), drive, associative=False), np.float64)[0, 200:]
        target = inputs[200 - 15 : 2000 - 15]
        half = len(states) // 2
        readout = np.linalg.lstsq(states[:half], target[:half], rcond=1e-6)[0]
        return 1.0 - float(np.mean((states[half:] @ readout - target[half:]) ** 2))

    assert explained(pairs=16) > 0.9
    assert explained(pairs=0) < 0.6


def test_a_quiet_wave_keeps_an_impulse_for_hundreds_of_steps() -> None:
    config = replace(SMALL, d_w=64, wave_pairs=0)
    drive = drive_of(config, jnp.zeros((1, 832, config.d_e), jnp.float32))
    drive = drive._replace(signal=jnp.zeros_like(drive.signal))
    kept = wave_sequence(jnp.ones((1, config.d_w), jnp.float32), drive, associative=False)
    assert (kept[0, 255] > 0.8).sum() >= config.d_w // 8  # slow channels hold it
    assert (kept[0, 831] > 0.8).sum() >= 2
    assert (kept[0, 255] < 0.1).sum() >= config.d_w // 4  # and quick ones let go


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_starts_with_channels_that_keep_an_impulse_for_256_steps(preset: str) -> None:
    config = PRESETS[preset](obs_dim=4, action_dim=2)
    drive = drive_of(config, jnp.zeros((1, 1, config.d_e), jnp.float32))
    assert (np.asarray(drive.decay[0, 0], np.float64) ** 256 > 0.8).sum() >= config.d_w // 16


def test_what_the_first_step_showed_still_moves_the_wave_300_steps_later() -> None:
    params, carry = params_of(SMALL), init_carry(SMALL, 1)
    calm = random_inputs(SMALL, 1, 300, scale=0.1)
    shown = calm._replace(observation=calm.observation.at[:, 0].set(3.0))
    (one, _), (other, _) = jit_unroll(params, SMALL, carry, calm), jit_unroll(params, SMALL, carry, shown)
    assert float(jnp.abs(one.wave - other.wave).max()) > 1e-3


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_no_channel_decays_slower_than_the_config_allows_nor_grows(size: float) -> None:
    encoded = size * jax.random.normal(jax.random.key(1), (2, 50, SMALL.d_e))
    decay, signal, *_ = drive_of(SMALL, encoded)
    assert float(decay.max()) <= np.exp(-1.0 / SMALL.wave_max_steps) * (1 + 1e-6)
    assert float(decay.min()) >= 0.0
    # The input's scale is what keeps the state bounded: |signal| <= sqrt(1 - decay^2).
    R = SMALL.wave_pairs
    paired = jnp.hypot(signal[..., :R], signal[..., R : 2 * R])
    taken_in = jnp.concatenate([paired, paired, jnp.abs(signal[..., 2 * R :])], axis=-1)
    assert (taken_in <= jnp.sqrt(jnp.maximum(1 - decay**2, 1e-6)) * (1 + 1e-5)).all()


def test_time_constants_start_spread_from_the_least_to_the_greatest() -> None:
    config = replace(SMALL, d_w=64, wave_pairs=0, wave_min_steps=2.0, wave_max_steps=10_000.0)
    decay, *_ = drive_of(config, jnp.zeros((1, 1, config.d_e), jnp.float32))
    constants = -1.0 / np.log(np.asarray(decay[0, 0], np.float64))
    assert constants.min() == pytest.approx(2.0, rel=0.1)
    assert constants.max() == pytest.approx(5_000.0, rel=0.1)
    assert (np.diff(constants) > 0).all()
