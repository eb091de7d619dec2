"""Encoder and output heads: the parts of CoreModel without a state."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float32

from brain_service.model.config import CoreModelConfig
from brain_service.model.signals import StepInputs, StepOutputs

__all__ = ["Encoder", "Heads"]


class Encoder(nn.Module):  # type: ignore[misc]
    """Observation, previous action and previous reward to the encoded input e_t."""

    config: CoreModelConfig

    def setup(self) -> None:
        """Create the layers."""
        self.first = nn.Dense(self.config.d_e, name="first")
        self.second = nn.Dense(self.config.d_e, name="second")

    def __call__(self, inputs: StepInputs) -> Float32[Array, "B *T E"]:
        """Return e_t. Where an episode begins there is no previous action or reward: both read as zero."""
        keep = (1.0 - inputs.is_first)[..., None]
        past = jnp.concatenate([inputs.previous_action, inputs.previous_reward[..., None]], axis=-1) * keep
        seen = jnp.concatenate([inputs.observation, past, inputs.is_first[..., None]], axis=-1)
        hidden = nn.silu(self.first(seen))
        return jnp.add(hidden, nn.silu(self.second(hidden)))


class Heads(nn.Module):  # type: ignore[misc]
    """Features of a step to the action chunk, next observation, reward and value."""

    config: CoreModelConfig

    def setup(self) -> None:
        """Create the layers."""
        config = self.config
        chunk = config.action_horizon * config.action_dim
        self.first = nn.Dense(config.d_h, name="first")
        self.second = nn.Dense(config.d_h, name="second")
        # Small first outputs: actions start near the middle of their range, far from where tanh goes flat.
        small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
        self.out = nn.Dense(2 * chunk + config.obs_dim + 2, kernel_init=small, name="out")

    def __call__(self, features: Float32[Array, "B *T F"], observation: Float32[Array, "B *T D"]) -> StepOutputs:
        """Return the predictions; the next observation is predicted as a change of this one."""
        config = self.config
        hidden = nn.silu(self.first(features))
        hidden = hidden + nn.silu(self.second(hidden))
        out = self.out(hidden)
        chunk = config.action_horizon * config.action_dim
        shape = (*out.shape[:-1], config.action_horizon, config.action_dim)
        centre = (config.log_std_max + config.log_std_min) / 2
        reach = (config.log_std_max - config.log_std_min) / 2
        return StepOutputs(
            action_mean=config.action_limit * jnp.tanh(out[..., :chunk]).reshape(shape),
            action_log_std=(centre + reach * jnp.tanh(out[..., chunk : 2 * chunk])).reshape(shape),
            next_observation=observation + out[..., 2 * chunk : -2],
            reward=out[..., -2],
            value=out[..., -1],
        )
