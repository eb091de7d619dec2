"""Whether a model may take the place of the active one: judged on the same held-out episodes, step by step.

The law: never on episodes that either was trained on, only on steps of experts and interventions, and only if the
candidate is not worse. Worse means that the interval of the paired difference lies above zero, or, where too few
episodes make that interval wide, that the error itself grew by more than a tenth.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from brain_service.datasets.dataset import Dataset
from brain_service.errors import InvalidError
from brain_service.training.evaluation.intervals import paired_bootstrap
from brain_service.training.evaluation.predictions import Prediction, predictions
from brain_service.training.evaluation.subject import Subject
from brain_service.training.normalisation import RANGE_FLOOR

__all__ = ["Promotion", "judge_promotion"]

HELD_OUT = "val"
WORST_GROWTH = 0.1


@dataclass(frozen=True)
class Promotion:
    """The verdict and its grounds. Errors are mean squares, as shares of the recorded action range squared."""

    promoted: bool
    reason: str
    active: str
    """The model that the candidate was held against."""
    episodes: int = 0
    steps: int = 0
    left_out: int = 0
    """Held-out episodes that one of the two was trained on."""
    candidate_error: float | None = None
    active_error: float | None = None
    growth: float | None = None
    """(candidate - active) / active; below 0 the candidate is better."""
    growth_interval: tuple[float, float] | None = None
    """None also where a single episode leaves it open."""

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as a JSON-ready mapping."""
        return asdict(self)


def judge_promotion(candidate: Subject, active: Subject, dataset: Dataset, split: str = HELD_OUT) -> Promotion:
    """Hold the candidate against the active model on the held-out episodes that neither was trained on.

    Raises:
        InvalidError: `split` holds training episodes.
        NotFoundError: the dataset has no such split.
        CorruptDataError: a shard is damaged.
    """
    if split != HELD_OUT:
        raise InvalidError(
            f"split {split!r}: models are promoted on held-out episodes only, split {HELD_OUT!r}", field="split"
        )

    def refused(reason: str) -> Promotion:
        return Promotion(False, reason, active.name)

    known = candidate.trained_episodes(dataset)
    if known is None:
        return refused("nobody knows which episodes the candidate was trained on, so none is held out for sure")
    if active.spec.observation != candidate.spec.observation or active.spec.action != candidate.spec.action:
        return refused(f"the active model {active.name} has other features; activate the new one by hand")
    # Where the active model's are unknown, its own training can only speak for it, never for the candidate.
    trained = known | (active.trained_episodes(dataset) or frozenset())
    held_out = {entry.episode_id for entry in dataset.entries(split)}
    left_out = len(held_out & trained)
    if left_out == len(held_out):
        return refused("no episode is left that neither model was trained on; record more episodes")
    span = dataset.statistics.vector("action", "max") - dataset.statistics.vector("action", "min")
    ours, steps = _errors(candidate, predictions(candidate, dataset, split, without=trained), span)
    theirs, _ = _errors(active, predictions(active, dataset, split, without=trained), span)
    if not steps.sum():
        return refused("no held-out step is an expert's or an intervention's; record demonstrations")
    return _verdict(active.name, ours, theirs, steps, left_out)


def _errors(
    subject: Subject, episodes: Iterable[Prediction], span: Float32[np.ndarray, "A"]
) -> tuple[Float[np.ndarray, "E"], Int[np.ndarray, "E"]]:
    """Return each episode's sum of squared relative errors over its imitated steps, and how many these are."""
    moved = span > 2 * RANGE_FLOOR
    found = []
    for episode in episodes:
        said = np.asarray(subject.normaliser.raw_action(episode.mean[episode.counted]), np.float64)
        share = (episode.action[episode.counted] - said)[:, moved] / span[moved]
        found.append((float(np.sum(share**2) / max(1, moved.sum())), int(episode.counted.sum())))
    return np.asarray([error for error, _ in found]), np.asarray([steps for _, steps in found])


def _verdict(
    active: str,
    ours: Float[np.ndarray, "E"],
    theirs: Float[np.ndarray, "E"],
    steps: Int[np.ndarray, "E"],
    left_out: int,
) -> Promotion:
    used = steps > 0
    ours, theirs, steps = ours[used], theirs[used], steps[used]
    candidate_error, active_error = float(ours.sum() / steps.sum()), float(theirs.sum() / steps.sum())
    # A model without any error leaves no room to grow; the unit then is rounding.
    unit = max(active_error, 1e-12)
    growth = (candidate_error - active_error) / unit
    low, high = (bound / unit for bound in paired_bootstrap(ours, theirs, steps))
    if not np.isfinite(growth):
        promoted, why = False, "its error is not finite"
    elif low > 0:
        promoted, why = False, "it is worse beyond the interval"
    elif growth > WORST_GROWTH:
        promoted, why = False, f"its error grew by more than {WORST_GROWTH:.0%}"
    else:
        promoted, why = True, "it is not worse"
    # No error falls below nothing, whatever the widening says.
    interval = None if np.isinf(high) else (max(low, -1.0), high)
    told = "no interval" if interval is None else f"{interval[0]:+.1%}, {high:+.1%}"
    episodes = "1 held-out episode" if len(steps) == 1 else f"{len(steps)} held-out episodes"
    reason = (
        f"{why}: its squared action error is {growth:+.1%} [{told}] from that of {active}, over "
        f"{int(steps.sum())} steps of {episodes}"
    )
    return Promotion(
        promoted=promoted,
        reason=reason,
        active=active,
        episodes=len(steps),
        steps=int(steps.sum()),
        left_out=left_out,
        candidate_error=candidate_error,
        active_error=active_error,
        growth=growth,
        growth_interval=interval,
    )
