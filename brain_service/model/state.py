"""The recurrent state of a CoreModel: four float arrays a batch, of one fixed layout for every backend.

    fast    s | p                               fast and particle state
    wave    w
    slots   (value | key) of slot 1, 2, ... N   memory levels one after the other, fast to slow
    clock   strength of slot 1 ... N | steps since the last write of levels 2 ... L | their pending sums

Counters are floats too, since a backend such as Hailo moves floats only. A zero state is the fresh state: learned
initial keys come in on the step whose `is_first` is 1.
"""

from math import exp, sqrt
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float32

from brain_service.model.config import CoreModelConfig

__all__ = ["Carry", "carry_bounds", "carry_shapes", "init_carry"]


class Carry(NamedTuple):
    """State after a step, one row a batch element; see the module text for the layout."""

    fast: Float32[Array, "B fast"]
    wave: Float32[Array, "B wave"]
    slots: Float32[Array, "B slots"]
    clock: Float32[Array, "B clock"]


def carry_shapes(config: CoreModelConfig) -> dict[str, int]:
    """Return the length n of each carry array (shape `[B, n]`), in carry order."""
    slow = config.levels - 1
    return {
        "fast": config.d_s + config.d_p,
        "wave": config.d_w,
        "slots": config.slots * (config.d_v + config.d_k),
        "clock": config.slots + slow * (1 + config.d_v),
    }


def init_carry(config: CoreModelConfig, batch: int) -> Carry:
    """Return the fresh (all zero) state of `batch` rows: arrays of shape `[batch, n]`, see `carry_shapes`."""
    return Carry(*(jnp.zeros((batch, size), jnp.float32) for size in carry_shapes(config).values()))


def carry_bounds(config: CoreModelConfig) -> dict[str, float]:
    """Return the greatest magnitude that any input sequence can bring each carry array to.

    Fast, particle, values, keys and strengths are convex mixtures of numbers in [-1, 1]. A wave channel with decay
    a and inputs in [-1, 1] stays within sqrt((1 + a) / (1 - a)), which the slowest decay bounds. The clock counts
    to the longest period and sums as many memory reads.
    """
    slowest = exp(-1.0 / config.wave_max_steps)
    return {
        "fast": 1.0,
        "wave": sqrt((1.0 + slowest) / (1.0 - slowest)),
        "slots": 1.0,
        "clock": float(config.cms_periods[-1]),
    }
