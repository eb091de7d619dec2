"""One optimiser step: the function that the local job and the cloud job share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float32, Int32, Key

from brain_service.model.config import CoreModelConfig
from brain_service.model.core import Params, init_params
from brain_service.model.memory import pack_memory, unit, unpack_memory
from brain_service.model.signals import StepInputs
from brain_service.model.state import Carry, init_carry
from brain_service.training.config import TrainConfig
from brain_service.training.objective import Metrics, Sequences, losses
from brain_service.training.remat import unroll_in_pieces
from brain_service.training.sharding import batch_sharding, make_mesh, parameter_sharding, replicated

__all__ = [
    "TrainState",
    "abstract_state",
    "disturb",
    "init_state",
    "make_optimiser",
    "make_train_step",
    "opening_carry",
    "state_sharding",
]

DECAYED = "kernel"  # a layer's matrix; the memory's keys and sharpness are matrices too, of another meaning


class TrainState(NamedTuple):
    """Everything that changes in training. The data position is `step`: a batch is a function of it."""

    step: Int32[Array, ""]
    params: Params
    opt_state: Any
    carry: Any = ()
    """The model's state after each row of the batch before (a `Carry`), in mode `streams`; else nothing."""


def make_schedule(config: TrainConfig) -> optax.Schedule:
    """Return the learning rate by step: a linear warm-up, at most a quarter, then a cosine to a hundredth."""
    warmup = min(config.warmup_steps, config.steps // 4)
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(config.steps, warmup + 1), config.learning_rate * 0.01
    )


def make_optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """Return AdamW under a clipped global norm, on the schedule of `make_schedule`.

    Weight decay leaves alone what is no layer's matrix: biases, rates, the memory's initial keys and sharpness.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(make_schedule(config), weight_decay=config.weight_decay, mask=decay_mask),
    )


def decay_mask(params: Params) -> Any:
    """Return for each parameter whether it decays, in the structure of `params`."""

    def decays(path: tuple[Any, ...], _leaf: object) -> bool:
        return str(getattr(path[-1], "key", "")) == DECAYED

    return jax.tree_util.tree_map_with_path(decays, params)


def _fresh_state(model: CoreModelConfig, config: TrainConfig, rng: Key[Array, ""]) -> TrainState:
    params = init_params(model, rng)
    carry = init_carry(model, config.batch_size) if config.mode == "streams" else ()
    return TrainState(jnp.zeros((), jnp.int32), params, make_optimiser(config).init(params), carry)


def abstract_state(model: CoreModelConfig, config: TrainConfig) -> TrainState:
    """Return the shapes and dtypes of the state, without computing anything."""
    state: TrainState = jax.eval_shape(lambda: _fresh_state(model, config, jax.random.key(0)))
    return state


def state_sharding(state: TrainState, mesh: Mesh) -> Any:
    """Return the annotation of each leaf of a state (arrays, or their shapes), in its structure."""
    parts: list[Any] = [
        replicated(mesh),
        parameter_sharding(mesh, state.params),
        parameter_sharding(mesh, state.opt_state),
        jax.tree.map(lambda _: batch_sharding(mesh), state.carry),
    ]
    return TrainState(*parts)


def init_state(model: CoreModelConfig, config: TrainConfig, mesh: Mesh | None = None) -> TrainState:
    """Return the state before the first step, spread over the mesh (default: one device).

    The seed decides the parameters, whatever the mesh.
    """
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    build = jax.jit(
        lambda rng: _fresh_state(model, config, rng),
        out_shardings=state_sharding(abstract_state(model, config), mesh),
    )
    state: TrainState = build(jax.random.key(config.seed))
    return state


def make_train_step(
    model: CoreModelConfig, config: TrainConfig, mesh: Mesh | None = None
) -> Callable[[TrainState, Sequences], tuple[TrainState, Metrics]]:
    """Return the compiled step for a mesh (default: one device); it takes over the state's buffers.

    Do not use the old state again. Its randomness is a function of the seed and the step, so a resumed run goes
    on as if it had never stopped. The metrics are the loss's parts, `gradient_norm` before it was clipped, and
    `learning_rate`.
    """
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    optimiser, schedule = make_optimiser(config), make_schedule(config)

    def objective(
        params: Params, carry: Any, sequences: Sequences, rng: Key[Array, ""]
    ) -> tuple[Float32[Array, ""], tuple[Carry, Metrics]]:
        inputs = disturb(sequences.inputs, config, rng)
        begin = carry or opening_carry(model, params, inputs.is_first.shape[0])
        end, outputs = unroll_in_pieces(params, model, begin, inputs, config.remat_steps)
        metrics = losses(outputs, sequences)
        return metrics["loss"], (end, metrics)

    def train_step(state: TrainState, sequences: Sequences) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(config.seed + 1), state.step)
        slope = jax.grad(objective, has_aux=True)
        gradient, (carry, metrics) = slope(state.params, state.carry, sequences, rng)
        updates, opt_state = optimiser.update(gradient, state.opt_state, state.params)
        metrics = metrics | {
            "gradient_norm": optax.tree.norm(gradient),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, carry if state.carry else ()), metrics

    where = state_sharding(abstract_state(model, config), mesh)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(where, batch_sharding(mesh)),
        out_shardings=(where, replicated(mesh)),
    )


def opening_carry(model: CoreModelConfig, params: Params, rows: int) -> Carry:
    """Return the state, arrays of shape `[rows, n]`, for sequences of which some begin inside an episode.

    It is the fresh one with the learned keys, which a step brings along only where `is_first` is 1. All zero, the
    slots of a level would have one key, and would be written and read as one.
    """
    carry = init_carry(model, rows)
    memory = unpack_memory(model, carry.slots, carry.clock)
    keys = jnp.broadcast_to(unit(params["cell"]["memory"]["initial_keys"]), memory.keys.shape)
    slots, clock = pack_memory(memory._replace(keys=keys))
    return carry._replace(slots=slots, clock=clock)


def disturb(inputs: StepInputs, config: TrainConfig, rng: Key[Array, ""]) -> StepInputs:
    """Hide some previous actions, with their rewards, and add noise to the observations.

    A policy that sees its last action is tempted to repeat it (de Haan et al., arXiv 1905.11979); hidden ones read
    as the middle of the range. A robot that acts is seldom told its reward; a hidden one reads as the mean. Inputs
    are of shape `[B, T, ...]` in normalised units.
    """
    dropped, noise = jax.random.split(rng)
    keep = jax.random.bernoulli(dropped, 1.0 - config.previous_action_dropout, inputs.is_first.shape)
    shape = inputs.observation.shape
    return inputs._replace(
        previous_action=inputs.previous_action * keep[..., None],
        previous_reward=inputs.previous_reward * keep,
        observation=inputs.observation + config.observation_noise * jax.random.normal(noise, shape),
    )
