"""Errors of actions and of the next observation against trivial baselines, summed over episodes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from brain_service.training.evaluation.likelihoods import Likelihoods
from brain_service.training.evaluation.predictions import Prediction
from brain_service.training.normalisation import RANGE_FLOOR, Normaliser

__all__ = ["ActionErrors", "ErrorSums", "ObservationErrors"]


@dataclass(frozen=True)
class ActionErrors:
    """Per action element: errors in raw units, negative log likelihoods in nats.

    Baselines: the training split's mean action, and repeating the previous one; `likelihoods` says how likely
    each of them could hold an action at best. `accuracy` is the share of right choices, None where actions are not
    choices.
    """

    mae: list[float]
    rmse: list[float]
    mean_rmse: list[float]
    repeat_rmse: list[float]
    nll: list[float]
    mean_nll: list[float]
    repeat_nll: list[float]
    accuracy: list[float] | None


@dataclass(frozen=True)
class ObservationErrors:
    """Root mean square error of the predicted next observation, in normalised units.

    `still` is the error of saying that nothing changes. The vectors have an entry an observation element.
    """

    rmse: float
    still_rmse: float
    rmse_by_element: list[float]
    still_by_element: list[float]


class ErrorSums:
    """Sums in float64 over the imitated steps of all episodes."""

    def __init__(self, normaliser: Normaliser, mean_action: Float32[np.ndarray, "A"]) -> None:
        self._normaliser, self._mean = normaliser, mean_action
        self.steps = self._transitions = 0
        actions, observations = len(mean_action), len(normaliser.observation_mean)
        self._absolute = np.zeros(actions)
        self._squares = {name: np.zeros(actions) for name in ("model", "mean", "repeat")}
        self._changes = {name: np.zeros(observations) for name in ("model", "still")}

    def add(self, episode: Prediction) -> None:
        """Take one episode."""
        counted, scale = episode.counted, self._normaliser
        action = episode.action[counted]
        guesses = {
            "model": np.asarray(scale.raw_action(episode.mean[counted])),
            "mean": np.broadcast_to(self._mean, action.shape),
            "repeat": episode.previous[counted],
        }
        for name, guess in guesses.items():
            self._squares[name] += ((action.astype(np.float64) - guess) ** 2).sum(axis=0)
        self._absolute += np.abs(action.astype(np.float64) - guesses["model"]).sum(axis=0)
        self.steps += int(counted.sum())
        seen = np.asarray(episode.inputs.observation[: episode.length], np.float64)
        self._changes["model"] += ((seen[1:] - episode.next_observation[:-1]) ** 2).sum(axis=0)
        self._changes["still"] += ((seen[1:] - seen[:-1]) ** 2).sum(axis=0)
        self._transitions += max(0, episode.length - 1)

    def actions(self, likelihoods: Likelihoods, accuracy: list[float] | None) -> ActionErrors:
        """Return the figures of the actions; `steps` must not be 0."""
        mean_square = {name: squares / self.steps for name, squares in self._squares.items()}
        return ActionErrors(
            mae=(self._absolute / self.steps).tolist(),
            rmse=np.sqrt(mean_square["model"]).tolist(),
            mean_rmse=np.sqrt(mean_square["mean"]).tolist(),
            repeat_rmse=np.sqrt(mean_square["repeat"]).tolist(),
            nll=likelihoods.model.tolist(),
            mean_nll=likelihoods.mean.tolist(),
            repeat_nll=likelihoods.repeat.tolist(),
            accuracy=accuracy,
        )

    def relative_rmse(self, name: str) -> float:
        """Return the error of `model`, `mean` or `repeat` as a share of the range of what ever moved."""
        span = (self._normaliser.action_high - self._normaliser.action_low).astype(np.float64)
        moved = span > 2 * RANGE_FLOOR
        shares = np.sqrt(self._squares[name][moved] / self.steps) / span[moved]
        return float(np.sqrt(np.mean(shares**2))) if moved.any() else 0.0

    def observations(self) -> ObservationErrors:
        """Return the figures of the next observation; zeros where every episode has one step."""
        model, still = (self._changes[name] / max(1, self._transitions) for name in ("model", "still"))
        return ObservationErrors(
            rmse=float(np.sqrt(np.mean(model))),
            still_rmse=float(np.sqrt(np.mean(still))),
            rmse_by_element=np.sqrt(model).tolist(),
            still_by_element=np.sqrt(still).tolist(),
        )
