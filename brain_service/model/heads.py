"""Encoder and output heads: the parts of CoreModel without a state."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float32

from brain_service.model.choices import likeliest, share_of_choices
from brain_service.model.config import CoreModelConfig
from brain_service.model.layers import Linear
from brain_service.model.signals import StepInputs, StepOutputs
from brain_service.model.vision import ImageEncoder

__all__ = ["Encoder", "Heads"]


class Encoder(nn.Module):  # type: ignore[misc]
    """Observation, image, previous action and previous reward to the encoded input e_t."""

    config: CoreModelConfig

    def setup(self) -> None:
        """Create the layers."""
        self.first = Linear(self.config, self.config.d_e, name="first")
        self.second = Linear(self.config, self.config.d_e, name="second")
        if self.config.image_shape:
            self.image = ImageEncoder(self.config, name="image")

    def __call__(self, inputs: StepInputs) -> Float32[Array, "*B E"]:
        """Return e_t. Where an episode begins there is no previous action or reward: both read as zero.

        Raises:
            ValueError: there is an image and no encoder for it, or the reverse, or it has another shape.
        """
        keep = (1.0 - inputs.is_first)[..., None]
        action = inputs.previous_action
        if self.config.action_choices:
            shares = share_of_choices(action, self.config.action_choices)
            action = shares.reshape((*action.shape[:-1], -1))
        past = jnp.concatenate([action, inputs.previous_reward[..., None]], axis=-1) * keep
        seen = [inputs.observation, past, inputs.is_first[..., None]]
        shape = () if inputs.image is None else inputs.image.shape[inputs.is_first.ndim :]
        if shape != self.config.image_shape:
            raise ValueError(f"the image has shape {shape}, the model's image_shape is {self.config.image_shape}")
        if inputs.image is not None:
            seen.append(self.image(inputs.image))
        hidden = nn.silu(self.first(jnp.concatenate(seen, axis=-1)))
        return jnp.add(hidden, nn.silu(self.second(hidden)))


class Heads(nn.Module):  # type: ignore[misc]
    """Features of a step to the action chunk, next observation, reward and value."""

    config: CoreModelConfig

    def setup(self) -> None:
        """Create the layers."""
        config = self.config
        self.first = Linear(config, config.d_h, name="first")
        self.second = Linear(config, config.d_h, name="second")
        # Small first outputs: actions start near the middle of their range, far from where tanh goes flat.
        small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
        chunk = config.action_horizon * config.action_dim * (config.action_choices or 2)
        self.out = Linear(config, chunk + config.obs_dim + 2, kernel_init=small, name="out")

    def __call__(self, features: Float32[Array, "*B F"], observation: Float32[Array, "*B D"]) -> StepOutputs:
        """Return the predictions; the next observation is predicted as a change of this one."""
        config = self.config
        hidden = nn.silu(self.first(features))
        hidden = hidden + nn.silu(self.second(hidden))
        out = self.out(hidden)
        world = config.obs_dim + 2
        mean, log_std, logits = self._actions(out[..., :-world])
        return StepOutputs(
            action_mean=mean,
            action_log_std=log_std,
            next_observation=observation + out[..., -world:-2],
            reward=out[..., -2],
            value=out[..., -1],
            action_logits=logits,
        )

    def _actions(
        self, out: Float32[Array, "*B O"]
    ) -> tuple[Float32[Array, "*B H A"], Float32[Array, "*B H A"], Float32[Array, "*B H A n"] | None]:
        config = self.config
        shape = (*out.shape[:-1], config.action_horizon, config.action_dim)
        if config.action_choices:
            logits = out.reshape((*shape, config.action_choices))
            return likeliest(logits), jnp.zeros(shape, jnp.float32), logits
        chunk = config.action_horizon * config.action_dim
        centre = (config.log_std_max + config.log_std_min) / 2
        reach = (config.log_std_max - config.log_std_min) / 2
        mean = config.action_limit * jnp.tanh(out[..., :chunk])
        log_std = centre + reach * jnp.tanh(out[..., chunk:])
        return mean.reshape(shape), log_std.reshape(shape), None
