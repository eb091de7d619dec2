"""What a CoreModel reads and what it answers, in normalised units."""

from typing import NamedTuple

from jax import Array
from jaxtyping import Float32, UInt8

__all__ = ["StepInputs", "StepOutputs"]


class StepInputs(NamedTuple):
    """What the model may see at time t; a sequence has a time axis after the batch axis.

    It never holds a_t or r_t: they are what the model predicts.
    """

    observation: Float32[Array, "B *T D"]
    """o_t."""
    previous_action: Float32[Array, "B *T A"]
    """a_{t-1} as commanded; ignored where `is_first` is 1."""
    previous_reward: Float32[Array, "B *T"]
    """r_{t-1}; ignored where `is_first` is 1."""
    is_first: Float32[Array, "B *T"]
    """1 on the first step of an episode, which starts from a fresh state; else 0."""
    image: UInt8[Array, "B *T H W C"] | Float32[Array, "B *T H W C"] | None = None
    """The camera's pixels at t, 0 to 255; None for a model without an image encoder. They are bytes, or floats of
    the same values where a compiler takes none."""


class StepOutputs(NamedTuple):
    """Predictions at time t; a sequence has a time axis after the batch axis."""

    action_mean: Float32[Array, "B *T H A"]
    """Means of a_t ... a_{t+H-1}, within +-`action_limit`; discrete actions: the likeliest choices, in [-1, 1]."""
    action_log_std: Float32[Array, "B *T H A"]
    """Log standard deviations of the same actions, within `log_std_min` and `log_std_max`; discrete: 0."""
    next_observation: Float32[Array, "B *T D"]
    """o_{t+1}."""
    reward: Float32[Array, "B *T"]
    """r_t."""
    value: Float32[Array, "B *T"]
    """Discounted mean of the rewards r_t, r_{t+1}, ..."""
    action_logits: Float32[Array, "B *T H A n"] | None = None
    """Logits of the n choices of the same actions; None for continuous actions."""
