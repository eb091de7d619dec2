import json
from math import log
from pathlib import Path

import numpy as np
import pytest

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.training.evaluation import evaluate
from brain_service.training.evaluation.likelihoods import ChoiceLikelihood
from brain_service.training.evaluation.page import render_page
from brain_service.training.evaluation.predictions import Prediction
from brain_service.training.loop import train
from brain_service.training.normalisation import Normaliser
from tests.training.tasks import TINY, tiny

CHOICES = 3
SCALE = Normaliser(
    observation_mean=np.zeros(1, np.float32),
    observation_std=np.ones(1, np.float32),
    action_low=np.zeros(1, np.float32),
    action_high=np.full(1, 2, np.float32),
    reward_mean=np.zeros(1, np.float32),
    reward_std=np.ones(1, np.float32),
)


def make_choices(folder: Path) -> Path:
    """Episodes in which the choice says which third of its range the observation lies in; convert them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    for index in range(8):
        lines = []
        for t in range(24):
            seen = float(rng.uniform(-1, 1))
            metadata = {"timestamp_ns": 10**18 + t * 10**7, "step_index": t, "control_role": "expert"}
            lines.append(
                {
                    "observation": {"place": [seen]},
                    "action": {"choice": int(seen > -1 / 3) + int(seen > 1 / 3)},
                    "reward": 0.0,
                    "is_terminal": t == 23,
                    "step_metadata": metadata,
                }
            )
        (folder / f"episode-{index}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return convert_directory_to_tfrecord(folder, folder / "datasets", val_fraction=0.25).dataset_dir


@pytest.mark.slow
@pytest.mark.long
def test_choices_are_judged_by_their_probability_and_how_many_are_right(tmp_path: Path) -> None:
    dataset = make_choices(tmp_path / "episodes")
    model = {**TINY, "action_kind": "discrete", "action_choices": CHOICES}
    train(
        dataset,
        tmp_path / "run",
        tiny(steps=150, batch_size=8, learning_rate=1e-2, checkpoint_every=1000, model=model),
    )
    found = evaluate(tmp_path / "run", dataset)
    assert found.calibration is None
    assert found.action.accuracy is not None and found.action.accuracy[0] > 0.85
    # Three choices as likely as each other, and none tells the next.
    assert found.baseline_nll == pytest.approx(log(3), rel=0.1)
    assert found.repeat_nll == pytest.approx(log(3), rel=0.1)
    assert 0.0 < found.action_nll < 0.5 * found.baseline_nll
    assert "share right" in render_page(found)
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def prediction(action: list[int], logits: list[list[float]], counted: list[bool]) -> Prediction:
    steps = np.asarray(action, np.float32)[:, None]
    previous = np.concatenate([np.zeros_like(steps[:1]), steps[:-1]])
    empty = np.zeros((len(action), 1), np.float32)
    return Prediction(
        episode_id="one",
        inputs=None,  # type: ignore[arg-type]  # not looked at
        action=steps,
        previous=previous,
        counted=np.asarray(counted),
        mean=empty,
        log_std=empty,
        next_observation=empty,
        logits=np.asarray(logits, np.float32)[:, None],
    )


def test_the_sums_are_those_of_the_definition_over_counted_steps_only() -> None:
    likelihood = ChoiceLikelihood(SCALE, CHOICES, 1)
    half = [log(0.5), log(0.25), log(0.25)]
    likelihood.add(prediction([0, 0, 2, 1], [half, half, half, [9.0, -9.0, -9.0]], [True, True, True, False]))
    found = likelihood.result()
    assert found.model[0] == pytest.approx((2 * log(2) + log(4)) / 3)
    assert found.mean[0] == pytest.approx(-(2 / 3) * log(2 / 3) - (1 / 3) * log(1 / 3))
    # Two of three repeat the one before (before the first comes choice 0); the third is one of two others.
    assert found.repeat[0] == pytest.approx(-(2 / 3) * log(2 / 3) - (1 / 3) * log((1 / 3) / 2))
    assert likelihood.accuracy() == [pytest.approx(2 / 3)]


def test_a_baseline_that_is_never_wrong_has_a_finite_likelihood() -> None:
    likelihood = ChoiceLikelihood(SCALE, CHOICES, 1)
    likelihood.add(prediction([0, 0], [[1.0, 0.0, 0.0]] * 2, [True, True]))
    found = likelihood.result()
    assert np.isfinite(found.repeat).all() and found.repeat[0] >= 0.0 and found.mean[0] == 0.0
