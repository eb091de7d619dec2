"""Discrete actions on a model with a continuous head.

A choice is one-hot, in [-1, 1] once normalised. The head's means, scaled, are taken as logits: cross-entropy in
training, the greatest in the closed loop. It is the one place that knows of it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32

from brain_service.model.signals import StepOutputs
from brain_service.training.normalisation import Normaliser
from brain_service.training.objective import Metrics, Sequences, losses, masked_mean
from tests.bench.learning.tasks import Task

__all__ = ["choose", "objective"]

LOGIT_SCALE = 8.0  # the means lie within +-1.05, so a choice can be all but certain


def objective(task: Task, outputs: StepOutputs, sequences: Sequences) -> Float32[Array, ""]:
    """Return the project's loss; for a choice, with cross-entropy in the place of the action's likelihood."""
    metrics: Metrics = losses(outputs, sequences)
    if not task.discrete:
        return metrics["loss"]
    right = (sequences.action > 0.0).astype(jnp.float32)
    surprise = -jnp.sum(right * jax.nn.log_softmax(LOGIT_SCALE * outputs.action_mean[:, :, 0]), axis=-1)
    return metrics["loss"] - metrics["action"] + masked_mean(surprise, sequences.loss_mask)


def choose(task: Task, normaliser: Normaliser, action_mean: Float32[Array, "B A"]) -> Float32[np.ndarray, "B A"]:
    """Return the raw actions for the predicted means."""
    mean = np.asarray(action_mean)
    if task.discrete:
        return np.asarray(np.eye(mean.shape[1], dtype=np.float32)[mean.argmax(axis=1)])
    return np.asarray(normaliser.raw_action(mean), np.float32)
