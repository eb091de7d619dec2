from pathlib import Path

import numpy as np
import pytest

from brain_service.datasets.dataset import open_dataset
from brain_service.errors import InvalidError
from brain_service.training.checkpointing import load_checkpoint
from brain_service.training.evaluation import Drive, Policy, Subject, drive_closed_loop
from brain_service.training.evaluation.predictions import predictions
from brain_service.training.loop import TrainResult

pytestmark = pytest.mark.slow

GAIN = np.asarray([[0.8, -0.5, 0.0], [0.0, 0.3, 1.5]])


def follow(policy: Policy, seed: int) -> Drive:
    """Succeed where the policy does on average what the linear controller would."""
    rng, error = np.random.default_rng(seed), 0.0
    for _ in range(10):
        seen = rng.uniform(-1, 1, 3).astype(np.float32)
        error += float(np.abs(policy(seen, -abs(float(seen[0]))) - GAIN @ seen).mean()) / 10
    return Drive(error < 0.4, -error, 10)


def test_a_trained_policy_does_and_an_untrained_one_does_not(learned_run: Path, finished: TrainResult) -> None:
    trained, fresh = (
        drive_closed_loop(Subject.of_checkpoint(load_checkpoint(folder), "run"), follow, 8)
        for folder in (learned_run, finished.checkpoint_dir)
    )
    assert trained.success_rate > fresh.success_rate
    assert trained.mean_return > fresh.mean_return
    low, high = trained.success_interval
    assert low < trained.success_rate <= high
    assert (trained.episodes, trained.mean_steps) == (8, 10.0)


def test_the_policy_is_the_model_with_its_own_past(finished: TrainResult, dataset: Path) -> None:
    subject = Subject.of_checkpoint(load_checkpoint(finished.checkpoint_dir), "run")
    data = open_dataset(dataset)
    recorded, episode = next(iter(predictions(subject, data, "val"))), data.vectors("val", 0)
    first = []

    def replay(policy: Policy, seed: int) -> Drive:
        first.append(policy(episode.observation[0]))
        return Drive(True, 0.0, 1)

    drive_closed_loop(subject, replay, 2)
    expected = np.asarray(subject.normaliser.raw_action(recorded.mean[0]))
    np.testing.assert_allclose(first, [expected, expected], atol=1e-5)


def test_every_episode_starts_afresh(learned_run: Path) -> None:
    subject = Subject.of_checkpoint(load_checkpoint(learned_run), "run")
    answers: list[list[float]] = []

    def same(policy: Policy, _: int) -> Drive:
        rng = np.random.default_rng(3)
        answers.append([float(policy(rng.uniform(-1, 1, 3), 0.0)[0]) for _ in range(4)])
        return Drive(False, 0.0, 4)

    drive_closed_loop(subject, same, 2)
    assert answers[0] == answers[1]


def test_a_simulator_returns_three_values_in_whatever_tuple(finished: TrainResult) -> None:
    subject = Subject.of_checkpoint(load_checkpoint(finished.checkpoint_dir), "run")
    loop = drive_closed_loop(subject, lambda _policy, seed: (seed == 0, -1.5, 7), 2)
    assert (loop.success_rate, loop.mean_return, loop.mean_steps) == (0.5, -1.5, 7.0)
    for wrong in (None, (True, 1.0), (True, "far", 3)):
        with pytest.raises(InvalidError, match=r"return \(success, total_reward, steps\)"):
            drive_closed_loop(subject, lambda _policy, _seed, answer=wrong: answer, 1)  # type: ignore[misc]
