"""The wave: a diagonal linear recurrence whose gates depend on the input alone.

    a_t = exp(-max(c softplus(L) sigmoid(R e_t), 1 / wave_max_steps))
    w_t = a_t w_{t-1} + sqrt(1 - a_t^2) sigmoid(I e_t) tanh(U e_t)

Since neither gate sees the state, all matrix products of a sequence happen at once, before the recurrence. The
decay is kept in log space and the state in float32: 1 - 1e-4 is not a bfloat16 number.
Source: De et al., "Griffin" (arXiv 2402.19427), section 2.4 (RG-LRU); the floor on the decay is ours.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32

from brain_service.model.config import CoreModelConfig

__all__ = ["Wave", "wave_sequence", "wave_step"]

SHARPNESS = 8.0  # c of the source: how far a gate can move the decay


def _initial_rates(config: CoreModelConfig) -> np.ndarray:
    # Time constants spread evenly in log space where the gate is half open.
    steps = np.geomspace(config.wave_min_steps, config.wave_max_steps / 2, config.d_w)
    return np.log(np.expm1(2.0 / (SHARPNESS * steps))).astype(np.float32)


class Wave(nn.Module):  # type: ignore[misc]
    """Gates and inputs of the wave, from the encoded input alone."""

    config: CoreModelConfig

    def setup(self) -> None:
        """Create the parameters."""
        self.project = nn.Dense(3 * self.config.d_w, name="project")
        self.rate = self.param("rate", lambda _: jnp.asarray(_initial_rates(self.config)))

    def __call__(
        self, encoded: Float32[Array, "B *T E"]
    ) -> tuple[Float32[Array, "B *T W"], Float32[Array, "B *T W"]]:
        """Return the decays a_t in (0, 1) and the scaled inputs."""
        recurrence, gate, signal = jnp.split(self.project(encoded), 3, axis=-1)
        loss = SHARPNESS * nn.softplus(self.rate) * nn.sigmoid(recurrence)
        decay = jnp.exp(-jnp.maximum(loss, 1.0 / self.config.wave_max_steps))
        # The clip keeps the gradient of the square root finite as the decay nears 1.
        scale = jnp.sqrt(jnp.maximum(1.0 - decay * decay, 1e-6))
        return decay, scale * nn.sigmoid(gate) * jnp.tanh(signal)


def wave_step(
    wave: Float32[Array, "B W"], decay: Float32[Array, "B W"], signal: Float32[Array, "B W"]
) -> Float32[Array, "B W"]:
    """Advance the wave (shape `[B, W]`) by one step; a decay of 0 starts afresh."""
    return decay * wave + signal


def wave_sequence(
    wave: Float32[Array, "B W"],
    decay: Float32[Array, "B T W"],
    signal: Float32[Array, "B T W"],
    *,
    associative: bool,
) -> Float32[Array, "B T W"]:
    """Return w_1 ... w_T, shape `[B, T, W]`, from the state before them: in order or in log T parallel rounds."""
    if associative:
        first = signal[:, :1] + decay[:, :1] * wave[:, None]
        signal = jnp.concatenate([first, signal[:, 1:]], axis=1)

        def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
            return left[0] * right[0], left[1] * right[0] + right[1]

        _, states = jax.lax.associative_scan(combine, (decay, signal), axis=1)
        return jnp.asarray(states)

    def advance(state: Array, gates: tuple[Array, Array]) -> tuple[Array, Array]:
        state = wave_step(state, *gates)
        return state, state

    over_time = jnp.swapaxes(decay, 0, 1), jnp.swapaxes(signal, 0, 1)
    return jnp.swapaxes(jax.lax.scan(advance, wave, over_time)[1], 0, 1)
