"""Everything that is measured of a model on one split of a dataset, in one document."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.errors import InvalidError
from brain_service.spec import FeatureSpec
from brain_service.training.checkpointing import load_checkpoint
from brain_service.training.evaluation.calibration import Calibration
from brain_service.training.evaluation.closed_loop import ClosedLoop
from brain_service.training.evaluation.errors import ActionErrors, ErrorSums, ObservationErrors
from brain_service.training.evaluation.likelihoods import ChoiceLikelihood, NormalLikelihood
from brain_service.training.evaluation.predictions import Prediction, predictions
from brain_service.training.evaluation.promotion import Promotion
from brain_service.training.evaluation.rollouts import Rollouts, open_loop
from brain_service.training.evaluation.subject import Subject

__all__ = ["EvaluationResult", "evaluate", "evaluate_subject"]


@dataclass(frozen=True)
class EvaluationResult:
    """Figures over all imitated steps (an expert's or an intervention's) of a split.

    `relative_rmse` is the root mean square error as a share of the recorded action range, over all elements that
    ever moved; `baseline_relative_rmse` is the same for always answering the training split's mean action, and
    `repeat_relative_rmse` for repeating the previous one. `skill` is 1 - (error / baseline error)^2: 1 is perfect,
    0 no better than the mean. `action_nll` is the mean negative log likelihood of an action element, in nats (a
    density in normalised units, or the probability of a choice), and so are those of the two baselines.
    """

    model: str
    step: int
    dataset: str
    split: str
    episodes: int
    steps: int
    left_out: int
    """Episodes of the split that the model was trained on, in another version of the dataset."""
    relative_rmse: float
    baseline_relative_rmse: float
    repeat_relative_rmse: float
    skill: float
    action_nll: float
    baseline_nll: float
    repeat_nll: float
    action_names: list[str]
    observation_names: list[str]
    action: ActionErrors
    next_observation: ObservationErrors
    calibration: Calibration | None
    """None where actions are choices: a choice lies in no interval."""
    open_loop: Rollouts
    closed_loop: ClosedLoop | None = None
    promotion: Promotion | None = None

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
    subject = Subject.of_checkpoint(loaded, "checkpoint")
    return evaluate_subject(subject, open_dataset(dataset_dir), split=split, step=loaded.step)


def evaluate_subject(subject: Subject, dataset: Dataset, *, split: str = "val", step: int = 0) -> EvaluationResult:
    """Evaluate a model on one split; of a held-out one, episodes that it was trained on are left out.

    Raises:
        NotFoundError: there is no such split.
        InvalidError: as `evaluate`.
        CorruptDataError: a shard is damaged.
    """
    trained: frozenset[str] = frozenset()
    if split != "train":
        trained = subject.trained_episodes(dataset) or trained
    mean_action = dataset.statistics.vector("action", "mean")
    sums, likelihood = ErrorSums(subject.normaliser, mean_action), _likelihood(subject, mean_action)
    episodes = 0

    def counted() -> Iterator[Prediction]:
        nonlocal episodes
        for episode in predictions(subject, dataset, split, without=trained):
            sums.add(episode)
            likelihood.add(episode)
            episodes += 1
            yield episode

    # One at a time: the images of a whole split would not fit into memory.
    rollouts = open_loop(subject, counted())
    if sums.steps == 0:
        raise InvalidError(f"no step of split {split!r} is to be imitated; record demonstrations", field="split")
    errors = sums.actions(likelihood.result(), likelihood.accuracy())
    ours, baseline = sums.relative_rmse("model"), sums.relative_rmse("mean")
    return EvaluationResult(
        model=subject.name,
        step=step,
        dataset=f"{dataset.manifest.name}/{dataset.manifest.version}",
        split=split,
        episodes=episodes,
        steps=sums.steps,
        left_out=len(dataset.entries(split)) - episodes,
        relative_rmse=ours,
        baseline_relative_rmse=baseline,
        repeat_relative_rmse=sums.relative_rmse("repeat"),
        skill=1.0 - (ours / baseline) ** 2 if baseline > 0 else 0.0,
        action_nll=float(np.mean(errors.nll)),
        baseline_nll=float(np.mean(errors.mean_nll)),
        repeat_nll=float(np.mean(errors.repeat_nll)),
        action_names=element_names(subject.spec.action),
        observation_names=element_names(subject.spec.observation),
        action=errors,
        next_observation=sums.observations(),
        calibration=likelihood.calibration(),
        open_loop=rollouts,
    )


def _likelihood(subject: Subject, mean_action: Float32[np.ndarray, "A"]) -> NormalLikelihood | ChoiceLikelihood:
    choices = subject.config.action_choices
    if choices:
        return ChoiceLikelihood(subject.normaliser, choices, len(mean_action))
    return NormalLikelihood(subject.normaliser, mean_action)


def element_names(spec: FeatureSpec) -> list[str]:
    """Return a name an element of the flat vector: `path`, or `path[i, j]` where the feature is an array."""
    return [
        f"{path}[{', '.join(map(str, place))}]" if feature.shape else path
        for path, feature in spec.items()
        if feature.is_numeric
        for place in np.ndindex(*feature.shape)
    ]
