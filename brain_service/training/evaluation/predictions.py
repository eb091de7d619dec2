"""A model's predictions over whole recorded episodes, with the recorded past (teacher forcing)."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8

from brain_service.datasets.access import Steps
from brain_service.datasets.dataset import Dataset, EpisodeVectors
from brain_service.datasets.frames import Frames
from brain_service.datasets.loader import IMITATED_ROLES
from brain_service.errors import CorruptDataError, InvalidError
from brain_service.model.signals import StepInputs
from brain_service.model.state import init_carry
from brain_service.training.evaluation.subject import Subject, require_same_features
from brain_service.training.remat import unroll_in_pieces

__all__ = ["Prediction", "predictions"]

PIECE = 256
"""Steps of a model that sees which are run at a time: an encoder's activations are many times an image."""


class Prediction(NamedTuple):
    """One episode of T steps and what the model said of it; `action` and `previous` in raw units."""

    episode_id: str
    inputs: StepInputs
    """Normalised arrays of shape `[P, ...]`, padded to P >= T steps, P the same for all episodes."""
    action: Float32[np.ndarray, "T A"]
    previous: Float32[np.ndarray, "T A"]
    """a_{t-1}; at the first step, before which there is none, the training split's mean action."""
    counted: Bool[np.ndarray, "T"]
    """Steps whose action is an expert's or an intervention's."""
    mean: Float32[np.ndarray, "T A"]
    """Predicted action, normalised."""
    log_std: Float32[np.ndarray, "T A"]
    """Its log standard deviation, normalised."""
    next_observation: Float32[np.ndarray, "T D"]
    """Predicted o_{t+1}, normalised."""
    logits: Float32[np.ndarray, "T A n"] | None
    """Predicted log-odds of each choice, None where actions are not choices."""

    @property
    def length(self) -> int:
        """Return T, the steps of the episode; `inputs`, of shape `[P, ...]`, may have more."""
        return len(self.action)


def predictions(
    subject: Subject, dataset: Dataset, split: str, *, without: frozenset[str] = frozenset()
) -> Iterator[Prediction]:
    """Yield the split's episodes in the dataset's order, those named in `without` left out.

    Raises:
        NotFoundError: there is no such split.
        InvalidError: the dataset's features are not the model's, or no episode is left.
        CorruptDataError: a shard is damaged, or a number is not finite; names episode and step.
    """
    require_same_features(subject, dataset)
    entries = [
        (index, entry)
        for index, entry in enumerate(dataset.entries(split))
        if entry.episode_id not in without and entry.length
    ]
    if not entries:
        raise InvalidError(
            f"{dataset.location}: split {split!r} has no episode to judge by; record more episodes", field="split"
        )
    padded = max(entry.length for _, entry in entries)
    # Compiled once: all episodes are padded to one length.
    piece = PIECE if subject.image else 0
    predict = jax.jit(lambda params, carry, now: unroll_in_pieces(params, subject.config, carry, now, piece)[1])
    frames = Frames(dataset, split, subject.image, cache_bytes=0) if subject.image else None
    mean_action = dataset.statistics.vector("action", "mean")
    for index, entry in entries:
        episode = dataset.vectors(split, index)
        _require_finite(episode, entry.episode_id)
        image = None if frames is None else frames.window(Steps(index, 0, entry.length))
        inputs = _inputs(subject, episode, padded, image)
        batch = jax.tree.map(lambda values: values[None], inputs)
        outputs = jax.device_get(predict(subject.params, init_carry(subject.config, 1), batch))
        length = len(episode)
        yield Prediction(
            episode_id=entry.episode_id,
            inputs=inputs,
            action=np.asarray(episode.action),
            previous=np.concatenate([mean_action[None], episode.action[:-1]]),
            counted=np.asarray(episode.valid) & np.isin(episode.control_role, IMITATED_ROLES),
            mean=np.asarray(outputs.action_mean[0, :length, 0]),
            log_std=np.asarray(outputs.action_log_std[0, :length, 0]),
            next_observation=np.asarray(outputs.next_observation[0, :length]),
            logits=None if outputs.action_logits is None else np.asarray(outputs.action_logits[0, :length, 0]),
        )


def _require_finite(episode: EpisodeVectors, episode_id: str) -> None:
    for name in ("observation", "action", "reward"):
        values = getattr(episode, name)
        if not np.isfinite(values).all():
            step = np.argwhere(~np.isfinite(values))[0][0]
            raise CorruptDataError(
                f"{name} of episode {episode_id} is not finite at its step {step}; delete the episode and convert "
                "again",
                field=name,
            )


def _inputs(
    subject: Subject, episode: EpisodeVectors, padded: int, image: UInt8[np.ndarray, "T h w C"] | None
) -> StepInputs:
    scale = subject.normaliser
    rows = (
        scale.observation(episode.observation),
        scale.action(_before(episode.action)),
        scale.reward(_before(episode.reward)),
        episode.is_first,
    )
    inputs = StepInputs(*(jnp.asarray(_pad(np.asarray(values, np.float32), padded)) for values in rows))
    return inputs if image is None else inputs._replace(image=jnp.asarray(_pad(image, padded)))


def _before(values: Float32[np.ndarray, "T *X"]) -> Float32[np.ndarray, "T *X"]:
    return np.concatenate([np.zeros_like(values[:1]), values[:-1]])


def _pad(values: Shaped[np.ndarray, "T *X"], length: int) -> Shaped[np.ndarray, "P *X"]:
    return np.concatenate([values, np.zeros((length - len(values), *values.shape[1:]), values.dtype)])
