"""The particle: a small nonlinear state that moves a bounded part of the way to where z_t drives it.

p_t = p_{t-1} + rate * (tanh(target) - p_{t-1}),   (target, rate) = MLP(p_{t-1}, z_t),   0 < rate < 1
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float32

from brain_service.model.config import CoreModelConfig
from brain_service.model.layers import Linear

__all__ = ["Particle"]


class Particle(nn.Module):  # type: ignore[misc]
    """Local nonlinear dynamics; a convex step, so the state stays within [-1, 1]."""

    config: CoreModelConfig

    def setup(self) -> None:
        """Create the layers."""
        self.hidden = Linear(self.config, self.config.d_c, name="hidden")
        self.move = Linear(self.config, 2 * self.config.d_p, name="move")

    def __call__(self, particle: Float32[Array, "B P"], drive: Float32[Array, "B C"]) -> Float32[Array, "B P"]:
        """Return the next particle state under the driving signal z_t."""
        hidden = nn.silu(self.hidden(jnp.concatenate([particle, drive], axis=-1)))
        target, rate = jnp.split(self.move(hidden), 2, axis=-1)
        return jnp.add(particle, nn.sigmoid(rate) * (jnp.tanh(target) - particle))
