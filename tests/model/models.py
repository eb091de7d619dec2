"""A small model, its inputs and its compiled functions, shared by the tests of this folder."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from brain_service.model.config import CoreModelConfig
from brain_service.model.core import Params, init_params, step, unroll
from brain_service.model.signals import StepInputs

SMALL = CoreModelConfig(
    obs_dim=5,
    action_dim=3,
    action_horizon=2,
    d_e=12,
    d_s=8,
    d_w=7,
    d_p=4,
    d_c=8,
    d_k=4,
    d_v=5,
    d_h=10,
    cms_sizes=(3, 2, 4),
    cms_periods=(1, 3, 7),
    wave_pairs=2,
)
"""Every size differs from the others where it may, so that a swapped axis cannot go unnoticed."""

DISCRETE = replace(SMALL, action_kind="discrete", action_choices=4)
SEEING = replace(SMALL, image_shape=(9, 6, 2), image_channels=(3, 5))

jit_step = jax.jit(step, static_argnums=1)
jit_unroll = jax.jit(unroll, static_argnums=1)


@cache
def params_of(config: CoreModelConfig, seed: int = 0) -> Params:
    """Return parameters away from their gentle start: every one disturbed, matrices less the wider they are."""
    params = init_params(config, jax.random.key(seed))
    leaves, shape = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    moved = [
        np.asarray(leaf + 0.3 * rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), np.float32)
        for leaf in leaves
    ]
    disturbed: Params = jax.tree.unflatten(shape, [jnp.asarray(leaf) for leaf in moved])
    return disturbed


def random_inputs(
    config: CoreModelConfig, batch: int, length: int, *, seed: int = 0, scale: float = 1.0, resets: float = 0.0
) -> StepInputs:
    """Return a sequence that begins an episode in every row and starts others at random."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)

    image = None
    if config.image_shape:
        image = jnp.asarray(rng.integers(0, 256, (batch, length, *config.image_shape)), jnp.uint8)
    is_first = (rng.random((batch, length)) < resets).astype(np.float32)
    is_first[:, 0] = 1.0
    return StepInputs(
        normal(batch, length, config.obs_dim),
        normal(batch, length, config.action_dim),
        normal(batch, length),
        jnp.asarray(is_first),
        image,
    )


def at(inputs: StepInputs, t: int) -> StepInputs:
    """Return the inputs of one time step."""
    now: StepInputs = jax.tree.map(lambda part: part[:, t], inputs)
    return now


def largest_difference(left: object, right: object) -> float:
    """Return the greatest absolute difference between two trees of arrays."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
