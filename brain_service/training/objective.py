"""What training minimises: the action chunk's likelihood, and what makes the state worth keeping.

    loss = action + 0.5 next observation + 0.1 reward + 0.1 value

`action` is the beta-weighted negative log likelihood of Seitzer et al. (arXiv 2203.09168) with beta = 0.5, or the
cross-entropy of the recorded choices where actions are discrete. A value is the discounted mean of the rewards to
come (1 - gamma times their discounted sum), which has the size of a reward. The model's inputs at time t are o_t,
a_{t-1}, r_{t-1} and is_first; a_t and r_t enter here only, as targets.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32

from brain_service.datasets.loader import Batch
from brain_service.model.choices import share_of_choices
from brain_service.model.signals import StepInputs, StepOutputs
from brain_service.training.normalisation import Normaliser

__all__ = ["Metrics", "Sequences", "chunk_targets", "losses", "masked_mean", "normalise_batch", "value_targets"]

Metrics = dict[str, Float32[Array, ""]]
"""Scalars by name; `loss` is what is minimised."""

DISCOUNT = 0.97
TRACE = 0.95
"""How far a value's target trusts the rewards that came over the model's own estimate; lambda in TD(lambda)."""
WEIGHTS = {"action": 1.0, "next_observation": 0.5, "reward": 0.1, "value": 0.1}


class Sequences(NamedTuple):
    """A batch in the model's units; a mask is 1 where an entry counts."""

    inputs: StepInputs
    action: Float32[Array, "B T A"]
    reward: Float32[Array, "B T"]
    is_terminal: Float32[Array, "B T"]
    mask: Float32[Array, "B T"]
    """Real steps, not padding."""
    valid_mask: Float32[Array, "B T"]
    """Real steps whose action and reward mean something."""
    loss_mask: Float32[Array, "B T"]
    """Steps whose action is to be imitated."""
    next_mask: Float32[Array, "B T"]
    """Steps whose successor is in the sequence."""


def normalise_batch(batch: Batch, normaliser: Normaliser) -> Sequences:
    """Return a loader's batch in the model's units, as JAX arrays of the same shapes."""
    inputs = StepInputs(
        _device(normaliser.observation(batch.observation)),
        _device(normaliser.action(batch.previous_action)),
        _device(normaliser.reward(batch.previous_reward)),
        _device(batch.is_first),
        # Scaled inside the step: a byte a channel is what travels to the devices.
        jnp.asarray(batch.image) if batch.image.size else None,
    )
    return Sequences(
        inputs,
        _device(normaliser.action(batch.action)),
        _device(normaliser.reward(batch.reward)),
        _device(batch.is_terminal),
        _device(batch.mask),
        _device(batch.valid_mask),
        _device(batch.loss_mask),
        _device(batch.next_mask),
    )


def _device(array: Float32[np.ndarray | Array, "..."]) -> Float32[Array, "..."]:
    return jnp.asarray(array, jnp.float32)


def masked_mean(values: Float32[Array, "*B"], mask: Float32[Array, "*B"]) -> Float32[Array, ""]:
    """Return the mean (a scalar) of the entries whose mask, of the same shape, is 1; 0 where there is none."""
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def chunk_targets(
    action: Float32[Array, "B T A"],
    counts: Float32[Array, "B T"],
    is_first: Float32[Array, "B T"],
    horizon: int,
) -> tuple[Float32[Array, "B T H A"], Float32[Array, "B T H"]]:
    """Return at every t the actions a_t ... a_{t+H-1}, shape `[B, T, H, A]`, and a mask, shape `[B, T, H]`.

    The mask ends at the sequence's or episode's end.
    """
    targets, masks, whole = [action], [counts], jnp.ones_like(counts)
    for _ in range(1, horizon):
        action, counts, is_first = (_shift(array) for array in (action, counts, is_first))
        whole = whole * (1.0 - is_first)
        targets.append(action)
        masks.append(counts * whole)
    return jnp.stack(targets, axis=2), jnp.stack(masks, axis=2)


def _shift(array: Float32[Array, "B T *X"]) -> Float32[Array, "B T *X"]:
    # Entry t becomes what was at t + 1; nothing follows the last.
    return jnp.concatenate([array[:, 1:], jnp.zeros_like(array[:, :1])], axis=1)


def losses(outputs: StepOutputs, sequences: Sequences) -> Metrics:
    """Return each part of the loss, their weighted sum `loss`, and `action_rmse` of the first action."""
    horizon = outputs.action_mean.shape[2]
    target, counts = chunk_targets(sequences.action, sequences.loss_mask, sequences.inputs.is_first, horizon)
    error = target - outputs.action_mean

    change = _shift(sequences.inputs.observation) - outputs.next_observation
    returns, known = value_targets(outputs.value, sequences)
    parts = {
        "action": masked_mean(_surprise(outputs, target), counts),
        "next_observation": masked_mean(jnp.mean(_huber(change), axis=-1), sequences.next_mask),
        "reward": masked_mean(_huber(sequences.reward - outputs.reward), sequences.valid_mask),
        "value": masked_mean(_huber(returns - outputs.value), known),
    }
    first = jnp.mean(jnp.square(error[:, :, 0]), axis=-1)
    rmse = jnp.sqrt(masked_mean(first, sequences.loss_mask))
    total = sum((WEIGHTS[name] * part for name, part in parts.items()), jnp.zeros(()))
    return {"loss": total, **parts, "action_rmse": rmse}


def value_targets(
    value: Float32[Array, "B T"], sequences: Sequences
) -> tuple[Float32[Array, "B T"], Float32[Array, "B T"]]:
    """Return the lambda-returns, without a gradient, and a mask of the steps that have one, both `[B, T]`.

    A return is of the rewards that follow in the sequence; the estimate `value` counts for what lies beyond it
    and, less and less, on the way (Sutton and Barto, section 12.1). A target of one reward and the estimate
    after it makes the estimates chase themselves: through shared layers they grew without bound and took the
    gradient.
    """
    value = jax.lax.stop_gradient(value)
    known = jnp.maximum(sequences.next_mask, sequences.is_terminal) * sequences.valid_mask
    onward = DISCOUNT * sequences.next_mask * (1.0 - sequences.is_terminal)
    gained = (1.0 - DISCOUNT) * sequences.reward + (1.0 - TRACE) * onward * _shift(value)
    # G_t = fixed_t + share_t G_{t+1}; a step without a target of its own stands for it with its estimate.
    fixed, share = jnp.where(known > 0, gained, value), TRACE * onward * known

    def joined(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
        return earlier[0] + earlier[1] * later[0], earlier[1] * later[1]

    returns, _ = jax.lax.associative_scan(joined, (fixed, share), reverse=True, axis=1)
    return returns, known


def _surprise(outputs: StepOutputs, target: Float32[Array, "B T H A"]) -> Float32[Array, "B T H"]:
    # Negative log likelihood of the recorded actions, mean over their elements.
    if outputs.action_logits is not None:
        shares = share_of_choices(target, outputs.action_logits.shape[-1])
        return -jnp.mean(jnp.sum(shares * jax.nn.log_softmax(outputs.action_logits), axis=-1), axis=-1)
    error, log_std = target - outputs.action_mean, outputs.action_log_std
    nll = 0.5 * jnp.square(error * jnp.exp(-log_std)) + log_std
    # Each term times its own deviation: else the dimensions that are easy to predict take the whole gradient.
    return jnp.mean(nll * jax.lax.stop_gradient(jnp.exp(log_std)), axis=-1)


def _huber(error: Float32[Array, "*B"]) -> Float32[Array, "*B"]:
    size = jnp.abs(error)
    return jnp.where(size < 1.0, 0.5 * size * size, size - 0.5)
