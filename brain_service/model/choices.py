"""Discrete actions as numbers: choice j of n is the point -1 + 2 j / (n - 1) of the normalised range.

A recorded action is its index, so normalisation by the least and greatest index gives these points. All
functions use only operations that accelerators for inference compile: no gather, no comparison, no argmax.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32

__all__ = ["choice_points", "likeliest", "share_of_choices", "softmax"]

# Two logits one float32 apart still differ by more than one after this.
_SHARPEN = 1e6


def choice_points(choices: int) -> Float32[np.ndarray, "n"]:
    """Return the normalised action of each choice, shape `[n]`, from -1 to 1."""
    return np.linspace(-1.0, 1.0, choices, dtype=np.float32)


def share_of_choices(action: Float32[Array, "*B A"], choices: int) -> Float32[Array, "*B A n"]:
    """Return 1 at the choice that each normalised action is, else 0; between two choices each gets its share."""
    distance = (action[..., None] - choice_points(choices)) * ((choices - 1) / 2)
    return jnp.clip(1.0 - distance, 0.0, 1.0) + jnp.clip(1.0 + distance, 0.0, 1.0) - 1.0


def likeliest(logits: Float32[Array, "*B A n"]) -> Float32[Array, "*B A"]:
    """Return the normalised action (in [-1, 1]) of the greatest logit; equal logits give their mean."""
    return jnp.matmul(softmax(_SHARPEN * logits), choice_points(logits.shape[-1]))


@jax.jit
def softmax(logits: Float32[Array, "*B n"]) -> Float32[Array, "*B n"]:
    """Return the probabilities along the last axis. A function of its own, so that an export can name it."""
    return jax.nn.softmax(logits, axis=-1)
