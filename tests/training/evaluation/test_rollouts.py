from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brain_service.datasets.dataset import open_dataset
from brain_service.model.core import step
from brain_service.model.signals import StepInputs
from brain_service.model.state import init_carry
from brain_service.training.checkpointing import load_checkpoint
from brain_service.training.evaluation import EvaluationResult, Subject
from brain_service.training.evaluation.predictions import Prediction, predictions
from brain_service.training.evaluation.rollouts import make_rollout, open_loop
from brain_service.training.loop import TrainResult

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def subject(finished: TrainResult) -> Subject:
    return Subject.of_checkpoint(load_checkpoint(finished.checkpoint_dir), "run")


@pytest.fixture(scope="module")
def episode(subject: Subject, dataset: Path) -> Prediction:
    return next(iter(predictions(subject, open_dataset(dataset), "val")))


def test_up_to_its_start_a_rollout_is_the_recorded_past(subject: Subject, episode: Prediction) -> None:
    last = episode.length - 1
    observation, action = make_rollout(subject.config)(subject.params, episode.inputs, jnp.asarray([last]))
    np.testing.assert_allclose(observation[0, : last + 1], episode.next_observation, atol=1e-5)
    np.testing.assert_allclose(action[0, : last + 1], episode.mean, atol=1e-5)


def test_after_its_start_the_model_lives_on_its_own_predictions(subject: Subject, episode: Prediction) -> None:
    start, steps = 3, 7
    found, _ = make_rollout(subject.config)(subject.params, episode.inputs, jnp.asarray([start, 1]))
    carry, now = init_carry(subject.config, 1), None
    for t in range(steps):
        seen = jax.tree.map(lambda values, t=t: jnp.asarray(values[t : t + 1]), episode.inputs)
        carry, outputs = step(subject.params, subject.config, carry, seen if t <= start or now is None else now)
        now = StepInputs(outputs.next_observation, outputs.action_mean[:, 0], outputs.reward, jnp.zeros(1))
        np.testing.assert_allclose(found[0, t], outputs.next_observation[0], atol=1e-5)


def test_what_comes_after_the_start_is_not_seen(subject: Subject, episode: Prediction) -> None:
    def spoil(values: jax.Array) -> jax.Array:
        return values.at[5:].set(9.0)

    run, starts = make_rollout(subject.config), jnp.asarray([4])
    spoilt = jax.tree.map(spoil, episode.inputs)._replace(is_first=episode.inputs.is_first)
    expected, found = (run(subject.params, inputs, starts)[0] for inputs in (episode.inputs, spoilt))
    np.testing.assert_array_equal(found, expected)


def test_horizons_that_no_episode_reaches_are_left_out(learned: EvaluationResult) -> None:
    found = learned.open_loop
    # Episodes of 20 to 22 steps: from a tenth of them on, 16 steps remain and 32 do not.
    assert found.horizons == [1, 2, 4, 8, 16]
    assert found.rollouts[0] == 4 * learned.episodes
    assert found.rollouts == sorted(found.rollouts, reverse=True)
    assert all(len(row) == 5 for row in (found.observation_rmse, found.still_rmse, found.action_rmse))
    assert found.observation_rmse[0] < found.still_rmse[0]


def test_an_action_that_is_not_to_be_imitated_is_no_error(subject: Subject, episode: Prediction) -> None:
    """A policy's, or that of a final observation, which is zero and means nothing."""
    counted, absurd = episode.counted.copy(), episode.action.copy()
    counted[-4:], absurd[-4:] = False, 1e3
    expected, found = (
        open_loop(subject, [episode._replace(counted=counted, action=action)])
        for action in (episode.action, absurd)
    )
    assert found == expected
    assert found.horizons == open_loop(subject, [episode]).horizons
