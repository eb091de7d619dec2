"""Behaviour cloning of one model on one task: the project's loss, optimiser and disturbances, whole episodes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float32, Key

from brain_service.model.signals import StepInputs
from brain_service.training.config import TrainConfig
from brain_service.training.normalisation import Normaliser
from brain_service.training.objective import Sequences, losses
from brain_service.training.step import disturb, make_optimiser
from tests.bench.learning.models import Params, Policy
from tests.bench.learning.tasks import Demonstrations, Task

__all__ = ["Fitted", "fit", "normaliser_of", "sequences_of"]

CURVE_POINTS = 25
LOOK_EVERY = 20  # optimiser steps
HELD_OUT = 32  # demonstrations that are not learned from, for a task with a floor


@dataclass(frozen=True)
class Fitted:
    """A trained model and how the training went."""

    params: Params
    normaliser: Normaliser
    curve: list[tuple[int, float]]
    """Optimiser step and the loss there, averaged since the point before."""
    compile_s: float
    train_s: float


def normaliser_of(task: Task, demonstrations: Demonstrations) -> Normaliser:
    """Return the project's scales, from the real steps of the demonstrations."""
    real = demonstrations.mask > 0
    observation, action, reward = (
        demonstrations.observation[real],
        demonstrations.action[real],
        demonstrations.reward[real],
    )
    return Normaliser(
        observation_mean=observation.mean(axis=0),
        observation_std=np.maximum(observation.std(axis=0), np.float32(1e-3)),
        action_low=np.zeros_like(action[0]) if task.choices else action.min(axis=0),
        action_high=np.full_like(action[0], task.choices - 1) if task.choices else action.max(axis=0),
        reward_mean=reward.mean(keepdims=True),
        reward_std=np.maximum(reward.std(keepdims=True), np.float32(1e-3)),
    )


def sequences_of(task: Task, demonstrations: Demonstrations, normaliser: Normaliser) -> Sequences:
    """Return all episodes in the model's units; step t holds a_{t-1} and r_{t-1}."""
    action = np.asarray(normaliser.action(demonstrations.action))
    reward = np.asarray(normaliser.reward(demonstrations.reward))
    mask = demonstrations.mask
    is_first = np.zeros_like(mask)
    is_first[:, 0] = 1.0
    following = np.concatenate([mask[:, 1:], np.zeros_like(mask[:, :1])], axis=1)
    device = jnp.asarray
    inputs = StepInputs(
        device(normaliser.observation(demonstrations.observation)),
        device(_before(action) if task.sees_past else np.zeros_like(action)),
        device(_before(reward) if task.sees_past else np.zeros_like(reward)),
        device(is_first),
    )
    return Sequences(
        inputs=inputs,
        action=device(action),
        reward=device(reward),
        is_terminal=device((mask - following) * mask),
        mask=device(mask),
        valid_mask=device(mask),
        loss_mask=device(demonstrations.imitated),
        next_mask=device(following),
    )


def _before(values: Float32[np.ndarray, "N T *X"]) -> Float32[np.ndarray, "N T *X"]:
    return np.concatenate([np.zeros_like(values[:, :1]), values[:, :-1]], axis=1)


def fit(task: Task, policy: Policy, demonstrations: Demonstrations, config: TrainConfig) -> Fitted:
    """Train on batches of whole episodes; the seed decides parameters, order and noise.

    Training ends after `config.steps`, or where the task has a floor and the held-out loss is at it.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    normaliser = normaliser_of(task, demonstrations)
    sequences = sequences_of(task, demonstrations, normaliser)
    learned = len(sequences.mask) - (HELD_OUT if task.floor else 0)
    optimiser = make_optimiser(config)
    train_step, look = _make_step(policy, config, optimiser), _make_look(policy)
    params = policy.init(jax.random.key(config.seed))
    opt_state = optimiser.init(params)
    order = np.random.default_rng(config.seed)
    curve: list[Array] = []
    begun_s, compile_s = time.monotonic(), 0.0
    for length, until in _stages(task, config.steps):
        for index in range(len(curve), until):
            # Without replacement within a batch; every batch anew.
            rows = np.sort(order.choice(learned, config.batch_size, replace=False))
            rng = jax.random.fold_in(jax.random.key(config.seed + 1), index)
            params, opt_state, loss = train_step(params, opt_state, _batch(sequences, rows, length), rng)
            curve.append(loss)
            if index == 0:
                jax.block_until_ready(params)
                compile_s = time.monotonic() - begun_s
            if (index + 1) % LOOK_EVERY:
                continue
            print(f"step {index + 1} of {config.steps}: loss {float(loss):.4f}", flush=True)
            if task.floor and look(params, _batch(sequences, slice(learned, None), length)) < task.floor:
                break
    values = np.asarray(jax.device_get(curve), np.float64)
    train_s = time.monotonic() - begun_s - compile_s
    if not np.isfinite(values).all():
        raise FloatingPointError(f"{task.name}, {policy.name}: the loss is not finite; lower learning_rate")
    parts = np.array_split(np.arange(len(values)), min(CURVE_POINTS, max(len(values), 1)))
    points = [(int(part[-1]) + 1, float(values[part].mean())) for part in parts if len(part)]
    return Fitted(params, normaliser, points, compile_s, train_s)


def _stages(task: Task, steps: int) -> list[tuple[int | None, int]]:
    """Return for each part of the curriculum how much of an episode it sees and the step it ends before."""
    shares = np.cumsum([share for _, share in task.lengths])
    return [
        (length, round(steps * share))
        for (length, _), share in zip(task.lengths, shares / shares[-1], strict=True)
    ]


def _batch(sequences: Sequences, rows: np.ndarray | slice, length: int | None) -> Sequences:
    """Return the first `length` steps of some episodes."""
    batch: Sequences = jax.tree.map(lambda values: values[rows, :length], sequences)
    # What follows the last step is not in the sequence.
    return batch._replace(next_mask=batch.next_mask.at[:, -1].set(0.0))


def _make_step(
    policy: Policy, config: TrainConfig, optimiser: optax.GradientTransformation
) -> Callable[[Params, Any, Sequences, Key[Array, ""]], tuple[Params, Any, Float32[Array, ""]]]:
    def loss_of(params: Params, sequences: Sequences, rng: Key[Array, ""]) -> Float32[Array, ""]:
        inputs = disturb(sequences.inputs, config, rng)
        carry = policy.init_carry(inputs.is_first.shape[0])
        _, outputs = policy.unroll(params, carry, inputs)
        return losses(outputs, sequences)["loss"]

    def train_step(
        params: Params, opt_state: Any, sequences: Sequences, rng: Key[Array, ""]
    ) -> tuple[Params, Any, Float32[Array, ""]]:
        loss, gradient = jax.value_and_grad(loss_of)(params, sequences, rng)
        # Parameters of an ablation start at zero; without a gradient neither Adam nor decay moves them.
        gradient = jax.tree.map(jnp.multiply, gradient, policy.trainable(params))
        updates, opt_state = optimiser.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return jax.jit(train_step, donate_argnums=(0, 1))


def _make_look(policy: Policy) -> Callable[[Params, Sequences], Float32[Array, ""]]:
    def action_loss(params: Params, sequences: Sequences) -> Float32[Array, ""]:
        carry = policy.init_carry(sequences.mask.shape[0])
        return losses(policy.unroll(params, carry, sequences.inputs)[1], sequences)["action"]

    return jax.jit(action_loss)
