"""How likely the model and two trivial baselines hold the recorded actions: continuous ones, or choices.

Both kinds keep sums in float64 over the imitated steps, and both give each baseline the best distribution that it
could have on these very steps: errors of its own size, or its own frequencies.
"""

from math import log, pi
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float32, Int

from brain_service.training.evaluation.calibration import Calibration, calibration
from brain_service.training.evaluation.predictions import Prediction
from brain_service.training.normalisation import Normaliser

__all__ = ["ChoiceLikelihood", "Likelihoods", "NormalLikelihood"]

STD_FLOOR = 1e-4  # normalised units: a baseline that is never wrong has no infinite likelihood
SHARE_FLOOR = 1e-6  # nor one that always repeats


class Likelihoods(NamedTuple):
    """Mean negative log likelihoods in nats, an entry an action element."""

    model: Float[np.ndarray, "A"]
    mean: Float[np.ndarray, "A"]
    """Of always answering the same: the training split's mean action, or these steps' own frequencies."""
    repeat: Float[np.ndarray, "A"]
    """Of repeating the previous action."""


class NormalLikelihood:
    """Actions as normalised numbers with a predicted mean and deviation."""

    def __init__(self, normaliser: Normaliser, mean_action: Float32[np.ndarray, "A"]) -> None:
        self._normaliser = normaliser
        self._mean = np.asarray(normaliser.action(mean_action[None]))
        self._steps = 0
        self._nll, self._from_mean, self._from_previous = (np.zeros(len(mean_action)) for _ in range(3))
        self._scaled: list[Float[np.ndarray, "N A"]] = []

    def add(self, episode: Prediction) -> None:
        """Take one episode."""
        counted = episode.counted
        action, previous = (
            np.asarray(self._normaliser.action(values[counted]), np.float64)
            for values in (episode.action, episode.previous)
        )
        log_std = episode.log_std[counted].astype(np.float64)
        scaled = (action - episode.mean[counted]) / np.exp(log_std)
        self._nll += (0.5 * scaled**2 + log_std + 0.5 * log(2 * pi)).sum(axis=0)
        self._from_mean += ((action - self._mean) ** 2).sum(axis=0)
        self._from_previous += ((action - previous) ** 2).sum(axis=0)
        self._scaled.append(scaled)
        self._steps += len(action)

    def result(self) -> Likelihoods:
        """Return the figures of at least one step."""
        return Likelihoods(
            self._nll / self._steps, self._fitted(self._from_mean), self._fitted(self._from_previous)
        )

    def _fitted(self, squares: Float[np.ndarray, "A"]) -> Float[np.ndarray, "A"]:
        # The likelihood of errors under the normal distribution whose variance is their own mean square.
        std = np.maximum(np.sqrt(squares / self._steps), STD_FLOOR)
        return np.asarray(np.log(std) + 0.5 * log(2 * pi) + 0.5)

    def calibration(self) -> Calibration:
        """Return how often the truth lies in the predicted intervals."""
        return calibration(np.concatenate(self._scaled))

    def accuracy(self) -> None:
        """Return None: numbers are not right or wrong."""


class ChoiceLikelihood:
    """Actions as one of n choices an element, with predicted log-odds."""

    def __init__(self, normaliser: Normaliser, choices: int, elements: int) -> None:
        self._normaliser, self._choices = normaliser, choices
        self._steps = 0
        self._nll, self._right, self._repeated = (np.zeros(elements) for _ in range(3))
        self._counts = np.zeros((elements, choices))

    def add(self, episode: Prediction) -> None:
        """Take one episode."""
        counted = episode.counted
        chosen = self._index(episode.action[counted])
        chances = np.asarray(jax.nn.log_softmax(np.asarray(episode.logits, np.float32)[counted]), np.float64)
        self._nll -= np.take_along_axis(chances, chosen[..., None], axis=-1)[..., 0].sum(axis=0)
        self._right += (chances.argmax(axis=-1) == chosen).sum(axis=0)
        self._repeated += (self._index(episode.previous[counted]) == chosen).sum(axis=0)
        self._counts += (chosen[..., None] == np.arange(self._choices)).sum(axis=0)
        self._steps += len(chosen)

    def _index(self, action: Float32[np.ndarray, "N A"]) -> Int[np.ndarray, "N A"]:
        place = (np.asarray(self._normaliser.action(action), np.float64) + 1.0) * (self._choices - 1) / 2
        return np.clip(np.rint(place), 0, self._choices - 1).astype(np.int64)

    def result(self) -> Likelihoods:
        """Return the figures of at least one step."""
        often = self._counts / self._steps
        constant = -(often * np.log(np.maximum(often, SHARE_FLOOR))).sum(axis=-1)
        # Repeats with its own frequency, and else any of the other choices alike.
        share = np.clip(self._repeated / self._steps, SHARE_FLOOR, 1.0 - SHARE_FLOOR)
        repeat = -share * np.log(share) - (1.0 - share) * np.log((1.0 - share) / (self._choices - 1))
        return Likelihoods(self._nll / self._steps, constant, repeat)

    def calibration(self) -> None:
        """Return None: choices have no intervals."""

    def accuracy(self) -> list[float]:
        """Return the share of right choices an element."""
        right: list[float] = (self._right / self._steps).tolist()
        return right
