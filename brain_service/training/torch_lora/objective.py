"""What fine-tuning minimises: the numbers of `training/objective.py`, with torch's gradients."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

from brain_service.model.choices import choice_points
from brain_service.training import objective as jax_objective
from brain_service.training.objective import DISCOUNT, TRACE, WEIGHTS
from brain_service.training.torch_lora.model import share_of_choices
from brain_service.training.torch_lora.signals import StepInputs, StepOutputs

__all__ = ["Sequences", "losses", "to_tensors"]


class Sequences(NamedTuple):
    """A batch in the model's units, as `training/objective.py` has it; a mask is 1 where an entry counts."""

    inputs: StepInputs
    action: Float32[Tensor, "B T A"]
    reward: Float32[Tensor, "B T"]
    is_terminal: Float32[Tensor, "B T"]
    mask: Float32[Tensor, "B T"]
    valid_mask: Float32[Tensor, "B T"]
    loss_mask: Float32[Tensor, "B T"]
    next_mask: Float32[Tensor, "B T"]


def to_tensors(sequences: jax_objective.Sequences) -> Sequences:
    """Return a copy of a batch of the JAX trainer's as tensors of the same shapes."""
    # A copy, since JAX's memory must not be written to and torch knows no read-only tensors.
    parts: Mapping[str, Tensor | None] = {
        name: None if array is None else torch.from_numpy(np.array(array))
        for name, array in jax.device_get(
            sequences._asdict() | sequences.inputs._asdict() | {"inputs": None}
        ).items()
    }
    inputs = StepInputs(**{name: parts[name] for name in StepInputs._fields})  # type: ignore[arg-type]
    rest = {name: parts[name] for name in Sequences._fields if name != "inputs"}
    return Sequences(inputs, **rest)  # type: ignore[arg-type]


def losses(outputs: StepOutputs, sequences: Sequences) -> dict[str, Float32[Tensor, ""]]:
    """Return each part of the loss, their weighted sum `loss`, and `action_rmse` of the first action."""
    horizon = outputs.action_mean.shape[2]
    target, counts = _chunk_targets(sequences, horizon)
    change = _shift(sequences.inputs.observation) - outputs.next_observation
    returns, known = _value_targets(outputs.value.detach(), sequences)
    parts = {
        "action": _masked_mean(_surprise(outputs, target), counts),
        "next_observation": _masked_mean(_huber(change).mean(dim=-1), sequences.next_mask),
        "reward": _masked_mean(_huber(sequences.reward - outputs.reward), sequences.valid_mask),
        "value": _masked_mean(_huber(returns - outputs.value), known),
    }
    first = (target - outputs.action_mean)[:, :, 0].detach().square().mean(dim=-1)
    total = torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum()
    return {"loss": total, **parts, "action_rmse": _masked_mean(first, sequences.loss_mask).sqrt()}


def _chunk_targets(
    sequences: Sequences, horizon: int
) -> tuple[Float32[Tensor, "B T H A"], Float32[Tensor, "B T H"]]:
    # At every t the actions a_t ... a_{t+H-1}, and a mask that ends at the sequence's or the episode's end.
    action, counts, is_first = sequences.action, sequences.loss_mask, sequences.inputs.is_first
    targets, masks, whole = [action], [counts], torch.ones_like(counts)
    for _ in range(1, horizon):
        action, counts, is_first = (_shift(part) for part in (action, counts, is_first))
        whole = whole * (1.0 - is_first)
        targets.append(action)
        masks.append(counts * whole)
    return torch.stack(targets, dim=2), torch.stack(masks, dim=2)


def _shift(values: Float32[Tensor, "B T *X"]) -> Float32[Tensor, "B T *X"]:
    # Entry t becomes what was at t + 1; nothing follows the last.
    return torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)


def _masked_mean(values: Float32[Tensor, "*B"], mask: Float32[Tensor, "*B"]) -> Float32[Tensor, ""]:
    return (values * mask).sum() / mask.sum().clamp(min=1.0)


def _value_targets(
    value: Float32[Tensor, "B T"], sequences: Sequences
) -> tuple[Float32[Tensor, "B T"], Float32[Tensor, "B T"]]:
    # The lambda-returns and a mask of the steps that have one, from the last step back.
    known = torch.maximum(sequences.next_mask, sequences.is_terminal) * sequences.valid_mask
    onward = DISCOUNT * sequences.next_mask * (1.0 - sequences.is_terminal)
    gained = (1.0 - DISCOUNT) * sequences.reward + (1.0 - TRACE) * onward * _shift(value)
    fixed, share = torch.where(known > 0, gained, value), TRACE * onward * known
    returns, later = torch.empty_like(value), torch.zeros_like(value[:, 0])
    for t in reversed(range(value.shape[1])):
        later = fixed[:, t] + share[:, t] * later
        returns[:, t] = later
    return returns, known


def _surprise(outputs: StepOutputs, target: Float32[Tensor, "B T H A"]) -> Float32[Tensor, "B T H"]:
    # Negative log likelihood of the recorded actions, mean over their elements.
    if outputs.action_logits is not None:
        points = torch.tensor(choice_points(outputs.action_logits.shape[-1]), device=target.device)
        surprise = -torch.log_softmax(outputs.action_logits, dim=-1) * share_of_choices(target, points)
        return surprise.sum(dim=-1).mean(dim=-1)
    error, log_std = target - outputs.action_mean, outputs.action_log_std
    nll = 0.5 * (error * torch.exp(-log_std)).square() + log_std
    return (nll * torch.exp(log_std).detach()).mean(dim=-1)


def _huber(error: Float32[Tensor, "*B"]) -> Float32[Tensor, "*B"]:
    return functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=1.0)
