"""How close a checkpoint's actions come to those of episodes that it did not train on.

Episodes are run whole and in order, with the recorded past (teacher forcing). An action error is
never enough alone: only the closed loop shows whether a policy works.
"""

from dataclasses import asdict, dataclass
from math import log, pi
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from brain_service.datasets.loader import Batch, Dataset, SequenceLoader, open_dataset
from brain_service.errors import InvalidError
from brain_service.model.core import unroll
from brain_service.model.state import init_carry
from brain_service.training.checkpointing import LoadedCheckpoint, load_checkpoint
from brain_service.training.objective import normalise_batch

__all__ = ["EvaluationResult", "evaluate"]


@dataclass(frozen=True)
class EvaluationResult:
    """Errors over all imitated steps of a split; vectors have one entry an action element, in raw units.

    `relative_rmse` is the root mean square error as a share of the recorded action range, over all elements that
    ever moved; `baseline_*` is the same for always answering the training split's mean action, and
    `repeat_relative_rmse` for repeating the previous one. `skill` is 1 - (error / baseline error)^2: 1 is perfect,
    0 no better than the mean.
    """

    step: int
    split: str
    episodes: int
    steps: int
    action_mae: list[float]
    action_rmse: list[float]
    baseline_rmse: list[float]
    relative_rmse: float
    baseline_relative_rmse: float
    repeat_relative_rmse: float
    skill: float
    action_nll: float
    """Mean negative log likelihood of an action element in normalised units, in nats."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON-ready mapping."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"action error {self.relative_rmse:.1%} of the range against {self.baseline_relative_rmse:.1%} "
            f"for the mean action ({self.steps} steps of {self.episodes} episodes)"
        )


def evaluate(
    checkpoint_dir: str | Path, dataset_dir: str | Path, *, split: str = "val", step: int | None = None
) -> EvaluationResult:
    """Evaluate one step of a run (the newest that verifies) on one split of a dataset.

    Raises:
        NotFoundError: there is no checkpoint, dataset or split.
        InvalidError: the dataset's features are not the checkpoint's, or no step of the split is to be imitated.
        CorruptDataError: a shard or the checkpoint is damaged.
    """
    loaded = load_checkpoint(checkpoint_dir, step)
    dataset = open_dataset(dataset_dir)
    _require_same_spec(loaded, dataset)
    lengths = dataset.lengths(split)
    if not len(lengths):
        raise InvalidError(f"{dataset.location}: split {split!r} is empty; record more episodes", field="split")
    # One window an episode, all of one length: one compilation, and an epoch is every episode once.
    loader = SequenceLoader(dataset, split, batch_size=1, sequence_length=int(lengths.max()), seed=0)
    predict = jax.jit(unroll, static_argnums=1)
    totals = _Totals(loaded, dataset.statistics.vector("action", "mean"))
    for index in range(loader.steps_per_epoch):
        batch = loader.batch(index)
        inputs = normalise_batch(batch, loaded.normaliser).inputs
        _, outputs = predict(loaded.params, loaded.config, init_carry(loaded.config, 1), inputs)
        totals.add(batch, np.asarray(outputs.action_mean[0, :, 0]), np.asarray(outputs.action_log_std[0, :, 0]))
    return totals.result(loaded.step, split, len(lengths))


def _require_same_spec(loaded: LoadedCheckpoint, dataset: Dataset) -> None:
    for part in ("observation", "action"):
        ours, theirs = getattr(loaded.spec, part), getattr(dataset.spec, part)
        if ours != theirs:
            differing = sorted(path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path))
            raise InvalidError(
                f"{part}: the checkpoint and {dataset.location} differ in {', '.join(differing)}; "
                "evaluate on a dataset of the same features",
                field=f"{part}/{differing[0]}",
            )


class _Totals:
    """Sums over the imitated steps of all episodes, in float64."""

    def __init__(self, loaded: LoadedCheckpoint, mean_action: Float32[np.ndarray, "A"]) -> None:
        self._normaliser = loaded.normaliser
        self._mean = mean_action
        self._steps = 0
        self._nll = 0.0
        self._absolute = np.zeros(len(mean_action))
        self._squares = {name: np.zeros(len(mean_action)) for name in ("model", "mean", "repeat")}

    def add(self, batch: Batch, mean: Float32[np.ndarray, "T A"], log_std: Float32[np.ndarray, "T A"]) -> None:
        """Take one episode and the normalised predictions for it."""
        counted = batch.loss_mask[0] > 0
        action = batch.action[0][counted]
        guesses = {
            "model": np.asarray(self._normaliser.raw_action(mean[counted])),
            "mean": np.broadcast_to(self._mean, action.shape),
            "repeat": batch.previous_action[0][counted],
        }
        for name, guess in guesses.items():
            error = action.astype(np.float64) - guess
            self._squares[name] += (error**2).sum(axis=0)
            if name == "model":
                self._absolute += np.abs(error).sum(axis=0)
        scaled = (np.asarray(self._normaliser.action(action)) - mean[counted]) / np.exp(log_std[counted])
        self._nll += float((0.5 * scaled**2 + log_std[counted] + 0.5 * log(2 * pi)).mean(axis=1).sum())
        self._steps += int(counted.sum())

    def result(self, step: int, split: str, episodes: int) -> EvaluationResult:
        """Return the figures; raises where no step was imitated."""
        if self._steps == 0:
            raise InvalidError(
                f"no step of split {split!r} is to be imitated; record demonstrations", field="split"
            )
        rmse = {name: np.sqrt(squares / self._steps) for name, squares in self._squares.items()}
        span = (self._normaliser.action_high - self._normaliser.action_low).astype(np.float64)
        moved = span > 0

        def relative(name: str) -> float:
            shares = rmse[name][moved] / span[moved]
            return float(np.sqrt(np.mean(shares**2))) if moved.any() else 0.0

        ours, baseline = relative("model"), relative("mean")
        return EvaluationResult(
            step=step,
            split=split,
            episodes=episodes,
            steps=self._steps,
            action_mae=(self._absolute / self._steps).tolist(),
            action_rmse=rmse["model"].tolist(),
            baseline_rmse=rmse["mean"].tolist(),
            relative_rmse=ours,
            baseline_relative_rmse=baseline,
            repeat_relative_rmse=relative("repeat"),
            skill=1.0 - (ours / baseline) ** 2 if baseline > 0 else 0.0,
            action_nll=self._nll / self._steps,
        )
