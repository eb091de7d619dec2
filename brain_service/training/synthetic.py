"""Made-up training data for checks without a dataset: a controller that can be learned, in the model's units."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float32

from brain_service.model.signals import StepInputs
from brain_service.training.objective import Sequences

__all__ = ["synthetic_batch"]

SMOOTHNESS = 0.9  # how much of an observation is left in the next one


def synthetic_batch(step: int, batch: int, length: int, obs_dim: int, action_dim: int) -> Sequences:
    """Return a batch of `batch` episodes of `length` steps: smooth observations, action = tanh(K observation).

    Its arrays have the shape `[batch, length, ...]`. K and the data are functions of the sizes and the step alone.
    """
    to_action, noise = jax.random.split(jax.random.key(0))
    gain = jax.random.normal(to_action, (obs_dim, action_dim)) / jnp.sqrt(obs_dim)
    shocks = jax.random.normal(jax.random.fold_in(noise, step), (length, batch, obs_dim))

    def move(seen: Float32[Array, "B D"], shock: Float32[Array, "B D"]) -> tuple[Array, Array]:
        seen = SMOOTHNESS * seen + jnp.sqrt(1 - SMOOTHNESS**2) * shock
        return seen, seen

    _, observation = jax.lax.scan(move, shocks[0], shocks)
    observation = observation.swapaxes(0, 1)
    action = jnp.tanh(observation @ gain)
    reward = -jnp.mean(jnp.abs(observation), axis=-1)
    ones, zeros = jnp.ones((batch, length)), jnp.zeros((batch, length))
    inputs = StepInputs(observation, _before(action), _before(reward), zeros.at[:, 0].set(1.0))
    return Sequences(
        inputs,
        action=action,
        reward=reward,
        is_terminal=zeros.at[:, -1].set(1.0),
        mask=ones,
        valid_mask=ones,
        loss_mask=ones,
        next_mask=ones.at[:, -1].set(0.0),
    )


def _before(values: Float32[Array, "B T *X"]) -> Float32[Array, "B T *X"]:
    return jnp.concatenate([jnp.zeros_like(values[:, :1]), values[:, :-1]], axis=1)
