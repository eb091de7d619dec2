"""What goes into the JAX model as tensors, for tests that hold one framework against the other."""

from typing import Any

import numpy as np
import torch

from brain_service.model import signals
from brain_service.training.torch_lora.model import TorchCoreModel
from brain_service.training.torch_lora.signals import StepInputs, StepOutputs, fresh_carry
from tests.model.models import random_inputs

__all__ = ["as_tensors", "farthest", "outputs_of"]


def as_tensors(inputs: signals.StepInputs) -> StepInputs:
    """Return a copy of the inputs as tensors."""
    parts: list[Any] = [None if part is None else torch.tensor(np.asarray(part)) for part in inputs]
    return StepInputs(*parts)


def outputs_of(model: TorchCoreModel, seed: int = 5) -> StepOutputs:
    """Return what a torch model answers to a random sequence with resets."""
    inputs = as_tensors(random_inputs(model.config, 2, 9, seed=seed, resets=0.2))
    with torch.no_grad():
        _, outputs = model.unroll(fresh_carry(model.config, 2), inputs)
    return outputs


def farthest(left: StepOutputs, right: StepOutputs) -> float:
    """Return the greatest difference of any output."""
    pairs = [(a, b) for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    return max(float((a - b).abs().max()) for a, b in pairs)
