"""The wave: a diagonal linear recurrence whose gates depend on the input alone.

    a_t = exp(-max(c softplus(L) sigmoid(R e_t), 1 / wave_max_steps))
    w_t = a_t turn(w_{t-1}) + sqrt(1 - a_t^2) sigmoid(I e_t) tanh(U e_t)

`turn` leaves plain channels alone. The first `wave_pairs` channels form pairs with the next as many: a pair shares
its decay, is rotated by a learned angle in (0, pi) at every step, and takes in its two signals over sqrt(2). Plain
channels blur what they hold; pairs at different angles keep the recent inputs apart, as a delay line does.

Since neither gate sees the state, all matrix products of a sequence happen at once, before the recurrence. The
decay is kept in log space and the state in float32: 1 - 1e-4 is not a bfloat16 number.
Sources: De et al., "Griffin" (arXiv 2402.19427), section 2.4 (RG-LRU); Orvieto et al., "Resurrecting Recurrent
Neural Networks for Long Sequences" (arXiv 2303.06349) for the complex diagonal; the floor on the decay is ours.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32

from brain_service.model.config import CoreModelConfig
from brain_service.model.layers import Linear

__all__ = ["Wave", "WaveDrive", "wave_sequence", "wave_step"]

SHARPNESS = 8.0  # c of the source: how far a gate can move the decay


class WaveDrive(NamedTuple):
    """What the inputs and the parameters decide about the wave; R rotating pairs."""

    decay: Float32[Array, "B *T W"]
    """a_t in [0, 1); 0 starts afresh. Equal for the two channels of a pair."""
    signal: Float32[Array, "B *T W"]
    """Scaled input."""
    cosine: Float32[Array, "R"]
    """Cosine of each pair's angle."""
    sine: Float32[Array, "R"]
    """Sine of each pair's angle."""


def _initial_rates(config: CoreModelConfig) -> np.ndarray:
    # Where the gate is half open, pairs last as long as a delay line of their number; the time constants of the
    # other channels are spread evenly in log space.
    pairs = config.wave_pairs
    lasting = np.full(pairs, np.clip(pairs, config.wave_min_steps, config.wave_max_steps / 2))
    plain = np.geomspace(config.wave_min_steps, config.wave_max_steps / 2, config.d_w - 2 * pairs)
    steps = np.concatenate([lasting, plain])
    return np.log(np.expm1(2.0 / (SHARPNESS * steps))).astype(np.float32)


def _initial_angles(pairs: int) -> np.ndarray:
    # Evenly spaced in (0, pi): the Fourier basis of the last `pairs` steps. Stored as the logit of angle / pi.
    share = (np.arange(pairs) + 0.5) / max(pairs, 1)
    return np.log(share / (1.0 - share)).astype(np.float32)


class Wave(nn.Module):  # type: ignore[misc]
    """Gates and inputs of the wave, from the encoded input alone."""

    config: CoreModelConfig

    def setup(self) -> None:
        """Create the parameters."""
        config = self.config
        self.project = Linear(config, 3 * config.d_w - config.wave_pairs, name="project")
        self.rate = self.param("rate", lambda _: jnp.asarray(_initial_rates(config)))
        if config.wave_pairs:
            self.angle = self.param("angle", lambda _: jnp.asarray(_initial_angles(config.wave_pairs)))

    def __call__(self, encoded: Float32[Array, "B *T E"], is_first: Float32[Array, "B *T"]) -> WaveDrive:
        """Return the drive; where `is_first` is 1 the decay is 0: the state before it is forgotten."""
        pairs, width = self.config.wave_pairs, self.config.d_w
        projected = self.project(encoded)
        recurrence, gate, signal = jnp.split(projected, [width - pairs, 2 * width - pairs], axis=-1)
        loss = SHARPNESS * nn.softplus(self.rate) * nn.sigmoid(recurrence)
        decay = jnp.exp(-jnp.maximum(loss, 1.0 / self.config.wave_max_steps))
        # The clip keeps the gradient of the square root finite as the decay nears 1.
        scale = jnp.sqrt(jnp.maximum(1.0 - decay * decay, 1e-6))
        angle = np.float32(np.pi) * nn.sigmoid(self.angle) if pairs else jnp.zeros((0,), jnp.float32)
        if pairs:
            decay = jnp.concatenate([decay[..., :pairs], decay], axis=-1)
            # So that a pair's input, seen as one complex number, stays within 1 as the others' do.
            half = scale[..., :pairs] * np.float32(np.sqrt(0.5))
            scale = jnp.concatenate([half, half, scale[..., pairs:]], axis=-1)
        decay = decay * (1.0 - is_first[..., None])
        return WaveDrive(decay, scale * nn.sigmoid(gate) * jnp.tanh(signal), jnp.cos(angle), jnp.sin(angle))


def _turn(
    wave: Float32[Array, "*B W"], cosine: Float32[Array, "R"], sine: Float32[Array, "R"]
) -> Float32[Array, "*B W"]:
    R = cosine.shape[0]
    if R == 0:
        return wave
    first, second, plain = wave[..., :R], wave[..., R : 2 * R], wave[..., 2 * R :]
    return jnp.concatenate([cosine * first - sine * second, sine * first + cosine * second, plain], axis=-1)


def wave_step(wave: Float32[Array, "B W"], drive: WaveDrive) -> Float32[Array, "B W"]:
    """Advance the wave (shape `[B, W]`) by one step."""
    return drive.decay * _turn(wave, drive.cosine, drive.sine) + drive.signal


def wave_sequence(wave: Float32[Array, "B W"], drive: WaveDrive, *, associative: bool) -> Float32[Array, "B T W"]:
    """Return w_1 ... w_T, shape `[B, T, W]`, from the state before them: in order or in log T parallel rounds."""
    if associative:
        return _parallel(wave, drive)

    def advance(state: Array, gates: tuple[Array, Array]) -> tuple[Array, Array]:
        state = wave_step(state, WaveDrive(*gates, drive.cosine, drive.sine))
        return state, state

    over_time = jnp.swapaxes(drive.decay, 0, 1), jnp.swapaxes(drive.signal, 0, 1)
    return jnp.swapaxes(jax.lax.scan(advance, wave, over_time)[1], 0, 1)


def _parallel(wave: Float32[Array, "B W"], drive: WaveDrive) -> Float32[Array, "B T W"]:
    # A pair is one complex channel: its coefficients multiply as complex numbers do.
    R = drive.cosine.shape[0]
    begin = drive.decay[:, :1] * _turn(wave, drive.cosine, drive.sine)[:, None]
    signal = jnp.concatenate([drive.signal[:, :1] + begin, drive.signal[:, 1:]], axis=1)
    decay = drive.decay[..., R:]
    paired = decay[..., :R]
    real = jnp.concatenate([paired * drive.cosine, decay[..., R:]], axis=-1)

    def combine(left: tuple[Array, ...], right: tuple[Array, ...]) -> tuple[Array, ...]:
        (a, b, x, y), (c, d, u, v) = left, right
        product = a[..., :R] * c[..., :R] - b * d, a[..., :R] * d + b * c[..., :R]
        moved = c[..., :R] * x[..., :R] - d * y, d * x[..., :R] + c[..., :R] * y
        coefficient = jnp.concatenate([product[0], a[..., R:] * c[..., R:]], axis=-1)
        state = jnp.concatenate([moved[0], c[..., R:] * x[..., R:]], axis=-1) + u
        return coefficient, product[1], state, moved[1] + v

    first, second, plain = signal[..., :R], signal[..., R : 2 * R], signal[..., 2 * R :]
    elements = real, paired * drive.sine, jnp.concatenate([first, plain], axis=-1), second
    _, _, states, imaginary = jax.lax.associative_scan(combine, elements, axis=1)
    return jnp.concatenate([states[..., :R], imaginary, states[..., R:]], axis=-1)
