"""The loss on episodes that are never trained on, and when to stop because it no longer falls."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float32

from brain_service.datasets.loader import Dataset, SequenceLoader
from brain_service.errors import InvalidError
from brain_service.model.config import CoreModelConfig
from brain_service.model.core import Params, unroll
from brain_service.model.signals import StepOutputs
from brain_service.model.state import init_carry
from brain_service.pixels import ImageInput
from brain_service.training.feed import IMITATED_ROLES, require_finite
from brain_service.training.normalisation import Normaliser
from brain_service.training.objective import (
    WEIGHTS,
    Sequences,
    chunk_targets,
    losses,
    masked_mean,
    normalise_batch,
    value_targets,
)
from brain_service.training.sharding import place, replicated

__all__ = ["HeldOutLoss", "Standing", "held_out_parts", "mean_loss"]

SPLIT = "val"
LENGTH = 64  # steps a call; the state is carried over, so it changes the speed only
MOST_ROWS = 32
MOST_BATCHES = 64


@dataclass(frozen=True)
class Standing:
    """How the held-out loss went so far; part of a checkpoint, so that a resumed run stops where it would have."""

    best_step: int | None = None
    best_loss: float | None = None
    stale: int = 0
    """Looks since the best one."""

    def after(self, step: int, loss: float) -> "Standing":
        """Return the standing after a look at `step`; a loss that is not finite is never better."""
        if np.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            return Standing(step, loss, 0)
        return replace(self, stale=self.stale + 1)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping: the inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | None) -> "Standing":
        """Rebuild from `to_json`'s mapping; without one nothing was looked at yet."""
        return cls(**(document or {}))


Parts = dict[str, tuple[Float32[Array, ""], Float32[Array, ""]]]
"""For each part of the loss its mean and the number of what it is the mean of."""


def held_out_parts(outputs: StepOutputs, sequences: Sequences) -> Parts:
    """Return the parts of the loss of a batch; that of continuous actions is in nats."""
    parts = losses(outputs, sequences)
    horizon = outputs.action_mean.shape[2]
    target, counts = chunk_targets(sequences.action, sequences.loss_mask, sequences.inputs.is_first, horizon)
    if outputs.action_logits is None:
        log_std = outputs.action_log_std
        nll = 0.5 * jnp.square((target - outputs.action_mean) * jnp.exp(-log_std)) + log_std
        parts["action"] = masked_mean(jnp.mean(nll, axis=-1), counts)
    masks = {
        "action": counts,
        "next_observation": sequences.next_mask,
        "reward": sequences.valid_mask,
        "value": value_targets(outputs.value, sequences)[1],
    }
    return {name: (parts[name], jnp.sum(mask)) for name, mask in masks.items()}


def mean_loss(batches: Sequence[Parts]) -> float:
    """Return the loss of all batches together: of each part the mean over what it counts in any of them."""
    total, found = 0.0, jax.device_get(list(batches))
    for name, weight in WEIGHTS.items():
        means, numbers = np.asarray([parts[name] for parts in found], np.float64).T
        total += weight * float(np.sum(means * numbers) / max(np.sum(numbers), 1.0))
    return total


class HeldOutLoss:
    """The loss over the validation split, every episode from its first step on, undisturbed.

    It is the training loss with the actions' plain likelihood: the gradient's weighting by the deviation makes
    a surer and better policy look worse, and cannot tell when to stop.

    The episodes lie in streams whose state is carried on, as in serving, whatever the mode of training. Of a large
    split the first 64 batches are taken, always the same.

    Raises:
        InvalidError: no episode is held out.
    """

    def __init__(
        self,
        dataset: Dataset,
        model: CoreModelConfig,
        normaliser: Normaliser,
        mesh: Mesh,
        image: ImageInput | None = None,
    ) -> None:
        held_out = dataset.entries(SPLIT) if SPLIT in dataset.splits else []
        if not held_out:
            raise InvalidError(
                f"{dataset.location} holds out no episode, so there is no held-out loss to look at; record at "
                "least two episodes, or set evaluate_every to 0",
                field="evaluate_every",
            )
        self._rows = min(len(held_out), MOST_ROWS)
        self._loader = SequenceLoader(
            dataset,
            SPLIT,
            batch_size=self._rows,
            sequence_length=LENGTH,
            seed=0,
            roles=IMITATED_ROLES,
            mode="streams",
            image=image,
        )
        self._model = model
        self._normaliser = normaliser
        self._where = replicated(mesh)

        def one(params: Params, carry: Any, sequences: Any) -> tuple[Any, Any]:
            carry, outputs = unroll(params, model, carry, sequences.inputs)
            return carry, held_out_parts(outputs, sequences)

        self._one = jax.jit(one, out_shardings=self._where)

    def __call__(self, params: Params) -> float:
        """Return the mean loss of a step.

        Raises:
            CorruptDataError: a number in the data is not finite; names episode and step.
        """
        carry = place(init_carry(self._model, self._rows), self._where)
        found: list[Parts] = []
        for step in range(min(self._loader.steps_per_epoch, MOST_BATCHES)):
            batch = self._loader.batch(step)
            require_finite(self._loader, batch, step)
            sequences = place(normalise_batch(batch, self._normaliser), self._where)
            carry, parts = self._one(params, carry, sequences)
            found.append(parts)
        return mean_loss(found)
