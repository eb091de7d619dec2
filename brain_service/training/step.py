"""One optimiser step: the function that the local job and the cloud job share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float32, Int32, Key

from brain_service.model.config import CoreModelConfig
from brain_service.model.core import Params, init_params, unroll
from brain_service.model.signals import StepInputs
from brain_service.model.state import init_carry
from brain_service.training.config import TrainConfig
from brain_service.training.objective import Metrics, Sequences, losses

__all__ = ["TrainState", "init_state", "make_optimiser", "make_train_step"]


class TrainState(NamedTuple):
    """Everything that changes in training. The data position is `step`: a batch is a function of it."""

    step: Int32[Array, ""]
    params: Params
    opt_state: Any


def make_optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """Return AdamW under a clipped global norm, with a linear warm-up and a cosine decay to a hundredth.

    Weight decay leaves vectors alone (biases, rates, time constants).
    """
    warmup = min(config.warmup_steps, max(config.steps - 1, 1))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(config.steps, warmup + 1), config.learning_rate * 0.01
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, weight_decay=config.weight_decay, mask=_decayed),
    )


def _decayed(params: Params) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def init_state(model: CoreModelConfig, config: TrainConfig) -> TrainState:
    """Return the state before the first step; the seed decides the parameters."""
    optimiser = make_optimiser(config)

    def build(rng: Key[Array, ""]) -> TrainState:
        params = init_params(model, rng)
        return TrainState(jnp.zeros((), jnp.int32), params, optimiser.init(params))

    state: TrainState = jax.jit(build)(jax.random.key(config.seed))
    return state


def make_train_step(
    model: CoreModelConfig, config: TrainConfig
) -> Callable[[TrainState, Sequences], tuple[TrainState, Metrics]]:
    """Return the compiled step; it takes over the state's buffers (do not use the old state again).

    Its randomness is a function of the seed and the step, so a resumed run goes on as if it had never stopped.
    """
    optimiser = make_optimiser(config)
    base = jax.random.key(config.seed + 1)

    def objective(params: Params, sequences: Sequences, rng: Key[Array, ""]) -> tuple[Float32[Array, ""], Metrics]:
        inputs = disturb(sequences.inputs, config, rng)
        carry = init_carry(model, inputs.is_first.shape[0])
        _, outputs = unroll(params, model, carry, inputs)
        metrics = losses(outputs, sequences)
        return metrics["loss"], metrics

    def train_step(state: TrainState, sequences: Sequences) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(base, state.step)
        gradient, metrics = jax.grad(objective, has_aux=True)(state.params, sequences, rng)
        updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
        metrics = metrics | {"gradient_norm": optax.tree.norm(gradient)}
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics

    return jax.jit(train_step, donate_argnums=0)


def disturb(inputs: StepInputs, config: TrainConfig, rng: Key[Array, ""]) -> StepInputs:
    """Hide some previous actions and add noise to the observations.

    A policy that sees its last action is tempted to repeat it (de Haan et al., arXiv 1905.11979); hidden ones read
    as the middle of the range. Inputs are of shape `[B, T, ...]` in normalised units.
    """
    dropped, noise = jax.random.split(rng)
    keep = jax.random.bernoulli(dropped, 1.0 - config.previous_action_dropout, inputs.is_first.shape)
    shape = inputs.observation.shape
    return inputs._replace(
        previous_action=inputs.previous_action * keep[..., None],
        observation=inputs.observation + config.observation_noise * jax.random.normal(noise, shape),
    )
