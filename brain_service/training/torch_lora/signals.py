"""What the torch model reads and answers: the fields of `model/signals.py` and `model/state.py` as tensors."""

from typing import NamedTuple

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from brain_service.model.config import CoreModelConfig
from brain_service.model.state import carry_shapes

__all__ = ["Carry", "StepInputs", "StepOutputs", "fresh_carry"]


class Carry(NamedTuple):
    """State after a step, one row a batch element, in the layout of `model/state.py`."""

    fast: Float32[Tensor, "B fast"]
    wave: Float32[Tensor, "B wave"]
    slots: Float32[Tensor, "B slots"]
    clock: Float32[Tensor, "B clock"]


class StepInputs(NamedTuple):
    """What the model may see at time t, normalised; a sequence has a time axis after the batch axis."""

    observation: Float32[Tensor, "B *T D"]
    previous_action: Float32[Tensor, "B *T A"]
    previous_reward: Float32[Tensor, "B *T"]
    is_first: Float32[Tensor, "B *T"]
    image: UInt8[Tensor, "B *T H W C"] | None = None


class StepOutputs(NamedTuple):
    """Predictions at time t, normalised; a sequence has a time axis after the batch axis."""

    action_mean: Float32[Tensor, "B *T H A"]
    action_log_std: Float32[Tensor, "B *T H A"]
    next_observation: Float32[Tensor, "B *T D"]
    reward: Float32[Tensor, "B *T"]
    value: Float32[Tensor, "B *T"]
    action_logits: Float32[Tensor, "B *T H A n"] | None = None


def fresh_carry(config: CoreModelConfig, batch: int) -> Carry:
    """Return the fresh (all zero) state of `batch` rows: tensors of shape `[batch, n]`, see `carry_shapes`."""
    return Carry(*(torch.zeros(batch, size) for size in carry_shapes(config).values()))
