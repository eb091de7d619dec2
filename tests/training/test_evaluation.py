import json
from pathlib import Path

import pytest

from brain_service.errors import InvalidError, NotFoundError
from brain_service.training.evaluation import EvaluationResult, evaluate
from brain_service.training.loop import TrainResult, train
from tests.training.tasks import make_dataset, tiny


@pytest.fixture(scope="module")
def learned(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluationResult:
    """The evaluation of a run long enough to learn a linear controller roughly."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    train(dataset, folder, tiny(steps=250, batch_size=8, learning_rate=1e-2, checkpoint_every=1000))
    return evaluate(folder, dataset)


def test_a_short_training_beats_the_mean_action_on_held_out_episodes(learned: EvaluationResult) -> None:
    assert learned.relative_rmse < 0.6 * learned.baseline_relative_rmse
    assert learned.skill > 0.6
    assert learned.relative_rmse < learned.repeat_relative_rmse


def test_every_held_out_step_is_counted_once(learned: EvaluationResult, dataset: Path) -> None:
    entries = json.loads((dataset / "manifest.json").read_text())["splits"]["val"]
    assert (learned.episodes, learned.steps) == (len(entries), sum(entry["length"] for entry in entries))


def test_errors_are_per_action_element_in_raw_units(learned: EvaluationResult) -> None:
    assert len(learned.action_mae) == len(learned.action_rmse) == len(learned.baseline_rmse) == 2
    assert all(mae <= rmse for mae, rmse in zip(learned.action_mae, learned.action_rmse, strict=True))
    # The controller's gains: the second element (0.3, 1.5) spreads more than the first (0.8, -0.5).
    assert learned.baseline_rmse[1] > learned.baseline_rmse[0]
    assert learned.baseline_rmse[0] == pytest.approx((0.8**2 / 3 + 0.5**2 / 3) ** 0.5, rel=0.25)


def test_an_untrained_model_has_no_skill(dataset: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path / "run", tiny(steps=0))
    assert evaluate(tmp_path / "run", dataset).skill < 0.2


def test_the_result_is_json_and_a_sentence(learned: EvaluationResult) -> None:
    assert EvaluationResult(**json.loads(json.dumps(learned.to_json()))) == learned
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
