import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from brain_service.datasets.dataset import open_dataset
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError
from brain_service.model.signals import StepInputs
from brain_service.training.checkpointing import load_checkpoint
from brain_service.training.evaluation import EvaluationResult, Subject, evaluate
from brain_service.training.evaluation.errors import ErrorSums
from brain_service.training.evaluation.predictions import Prediction, predictions
from brain_service.training.loop import TrainResult, train
from brain_service.training.normalisation import Normaliser
from tests.training.tasks import make_dataset, tiny
from tests.training.test_feed import put_infinity


def test_a_short_training_beats_the_trivial_baselines_on_held_out_episodes(learned: EvaluationResult) -> None:
    assert learned.relative_rmse < 0.6 * learned.baseline_relative_rmse
    assert learned.skill > 0.6
    assert learned.relative_rmse < learned.repeat_relative_rmse
    assert learned.action_nll < min(learned.baseline_nll, learned.repeat_nll)


def test_every_held_out_step_is_counted_once(learned: EvaluationResult, dataset: Path) -> None:
    entries = json.loads((dataset / "manifest.json").read_text())["splits"]["val"]
    assert (learned.episodes, learned.steps) == (len(entries), sum(entry["length"] for entry in entries))
    assert learned.left_out == 0


def test_errors_are_per_action_element_in_raw_units(learned: EvaluationResult) -> None:
    errors = learned.action
    assert learned.action_names == ["command[0]", "command[1]"]
    assert learned.observation_names == ["state[0]", "state[1]", "state[2]"]
    for figures in (errors.mae, errors.rmse, errors.mean_rmse, errors.repeat_rmse, errors.nll, errors.mean_nll):
        assert len(figures) == 2
    assert all(mae <= rmse for mae, rmse in zip(errors.mae, errors.rmse, strict=True))
    # The controller's gains: the second element (0.3, 1.5) spreads more than the first (0.8, -0.5).
    assert errors.mean_rmse[1] > errors.mean_rmse[0]
    assert errors.mean_rmse[0] == pytest.approx((0.8**2 / 3 + 0.5**2 / 3) ** 0.5, rel=0.25)
    # Two independent draws lie further apart than one lies from the mean, by the root of two.
    assert errors.repeat_rmse[0] == pytest.approx(2**0.5 * errors.mean_rmse[0], rel=0.25)
    assert all(repeat > mean for repeat, mean in zip(errors.repeat_nll, errors.mean_nll, strict=True))


def test_observations_that_are_noise_are_predicted_no_better_than_their_mean(learned: EvaluationResult) -> None:
    found = learned.next_observation
    assert found.still_rmse == pytest.approx(2**0.5, rel=0.2)
    assert 0.9 < found.rmse < found.still_rmse
    assert len(found.rmse_by_element) == len(found.still_by_element) == 3


def test_an_untrained_model_has_no_skill(dataset: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path / "run", tiny(steps=0))
    assert evaluate(tmp_path / "run", dataset).skill < 0.2


def test_the_result_is_json_and_a_sentence(learned: EvaluationResult) -> None:
    document = learned.to_json()
    assert json.loads(json.dumps(document)) == document
    assert "for the mean action" in str(learned)


def test_the_same_checkpoint_gives_the_same_figures(finished: TrainResult, dataset: Path) -> None:
    assert evaluate(finished.checkpoint_dir, dataset) == evaluate(finished.checkpoint_dir, dataset)


def test_a_dataset_of_other_features_is_refused_by_name(finished: TrainResult, tmp_path: Path) -> None:
    other = make_dataset(tmp_path, count=2, observation="pose")
    with pytest.raises(InvalidError, match="pose") as caught:
        evaluate(finished.checkpoint_dir, other)
    assert caught.value.field == "observation/pose"


def test_an_unknown_split_or_run_is_said(finished: TrainResult, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="test"):
        evaluate(finished.checkpoint_dir, dataset, split="test")
    with pytest.raises(NotFoundError, match="train first"):
        evaluate(tmp_path / "none", dataset)


def test_a_split_of_the_policys_own_steps_cannot_be_judged(finished: TrainResult, tmp_path: Path) -> None:
    own = make_dataset(tmp_path, role="policy")
    with pytest.raises(InvalidError, match="demonstrations"):
        evaluate(finished.checkpoint_dir, own)


def test_predictions_see_the_recorded_past_and_never_the_present(finished: TrainResult, dataset: Path) -> None:
    subject = Subject.of_checkpoint(load_checkpoint(finished.checkpoint_dir), "run")
    data = open_dataset(dataset)
    for index, found in enumerate(predictions(subject, data, "val")):
        episode = data.vectors("val", index)
        T = found.length
        assert found.episode_id == data.entries("val")[index].episode_id
        np.testing.assert_array_equal(found.previous[1:], episode.action[:-1])
        # Nothing to repeat: nought, which may lie far outside the range, would make that baseline easy to beat.
        np.testing.assert_array_equal(found.previous[0], data.statistics.vector("action", "mean"))
        np.testing.assert_array_equal(
            found.inputs.previous_action[1:T], subject.normaliser.action(episode.action)[:-1]
        )
        np.testing.assert_array_equal(found.inputs.is_first[:T], [1.0] + [0.0] * (T - 1))
        assert found.mean.shape == found.action.shape


def test_an_element_that_moved_by_rounding_only_is_not_judged() -> None:
    low = np.asarray([-1.0, 5.0], np.float32)
    ones = np.ones(2, np.float32)
    normaliser = Normaliser(
        observation_mean=ones,
        observation_std=ones,
        action_low=low,
        action_high=low + np.asarray([2.0, 5e-7], np.float32),
        reward_mean=ones[:1],
        reward_std=ones[:1],
    )
    assert (normaliser.action_high > normaliser.action_low).all()
    sums = ErrorSums(normaliser, low)
    actions, nothing = np.asarray([normaliser.action_high]), np.zeros((1, 2), np.float32)
    inputs = StepInputs(*map(jnp.asarray, (nothing, nothing, nothing[:, 0], nothing[:, 0])))
    counted = np.ones(1, np.bool_)
    said = np.asarray([[1.0, -1.0]], np.float32)
    sums.add(Prediction("e", inputs, actions, nothing, counted, said, nothing, nothing, None))
    assert sums.relative_rmse("model") == 0.0


def test_a_number_that_is_not_finite_judges_no_model(finished: TrainResult, dataset: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(dataset, tmp_path / "1.0.0"))
    episode, at = put_infinity(copied, "reward", 0, "val")
    with pytest.raises(CorruptDataError, match=f"reward of episode {episode} is not finite at its step {at};"):
        evaluate(finished.checkpoint_dir, copied)
