"""The laws of promotion, each with a case that breaks it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.errors import InvalidError
from brain_service.training.checkpointing import load_checkpoint
from brain_service.training.evaluation import Subject, evaluate_subject, judge_promotion
from brain_service.training.evaluation.promotion import _verdict
from brain_service.training.loop import TrainResult
from tests.training.tasks import make_dataset, record_episodes


@pytest.fixture(scope="module")
def data(dataset: Path) -> Dataset:
    return open_dataset(dataset)


@pytest.fixture(scope="module")
def good(learned_run: Path) -> Subject:
    return Subject.of_checkpoint(load_checkpoint(learned_run), "good")


@pytest.fixture(scope="module")
def poor(finished: TrainResult) -> Subject:
    """A run of six steps."""
    return Subject.of_checkpoint(load_checkpoint(finished.checkpoint_dir), "poor")


def shifted(subject: Subject, by: float) -> Subject:
    """The same model with every action off by a share of the range."""
    params: dict[str, Any] = jax.tree.map(lambda leaf: leaf, subject.params)
    bias = np.array(params["heads"]["out"]["bias"])
    bias[:2] += by
    params["heads"] = {**params["heads"], "out": {**params["heads"]["out"], "bias": bias}}
    return replace(subject, params=params, name="shifted")


def test_a_better_model_is_promoted_and_a_worse_one_is_not(good: Subject, poor: Subject, data: Dataset) -> None:
    up, down = judge_promotion(good, poor, data), judge_promotion(poor, good, data)
    assert up.promoted
    assert up.growth is not None
    assert up.growth < -0.5
    assert not down.promoted
    # Two episodes: how far apart they are decides which of the rules speaks first.
    assert re.search("worse beyond the interval|grew by more than 10%", down.reason)
    assert (up.candidate_error, up.active_error) == (down.active_error, down.candidate_error)
    assert up.steps == evaluate_subject(good, data).steps


def test_the_same_model_is_not_worse_than_itself(good: Subject, data: Dataset) -> None:
    verdict = judge_promotion(good, good, data)
    assert verdict.promoted
    assert verdict.growth == 0.0
    assert verdict.growth_interval == (0.0, 0.0)


def test_a_small_loss_in_every_episode_is_beyond_the_interval(good: Subject, data: Dataset) -> None:
    verdict = judge_promotion(shifted(good, 0.3), good, data)
    assert not verdict.promoted
    assert verdict.growth_interval is not None
    assert verdict.growth_interval[0] > 0


def test_few_episodes_do_not_hide_a_large_loss() -> None:
    # Worse by half on average, better in one of three episodes: the interval holds zero, the growth decides.
    ours, theirs = np.array([9.0, 9.0, 1.0]), np.array([4.0, 4.0, 4.5])
    verdict = _verdict("active", ours, theirs, np.array([10, 10, 10]), 0)
    assert verdict.growth_interval is not None
    assert verdict.growth_interval[0] <= 0
    assert not verdict.promoted
    assert "grew by more than 10%" in verdict.reason


def test_a_difference_within_the_interval_is_not_worse() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.uniform(1, 2, 30)
    verdict = _verdict("active", theirs + rng.normal(0.01, 0.2, 30), theirs, np.full(30, 10), 0)
    assert verdict.promoted
    assert verdict.growth is not None
    assert 0 < verdict.growth < 0.1


def test_of_a_single_episode_the_growth_decides() -> None:
    for error, promoted in ((1.01, True), (1.2, False)):
        verdict = _verdict("active", np.array([error]), np.array([1.0]), np.array([5]), 0)
        assert verdict.promoted is promoted
        assert verdict.growth_interval is None
        assert "[no interval]" in verdict.reason and "of 1 held-out episode" in verdict.reason
        json.dumps(verdict.to_json(), allow_nan=False)


def test_an_error_that_is_not_finite_is_never_promoted() -> None:
    broken = _verdict("active", np.array([np.nan, 1.0]), np.array([1.0, 1.0]), np.array([5, 5]), 0)
    assert not broken.promoted


def test_nothing_is_promoted_on_training_episodes(good: Subject, poor: Subject, data: Dataset) -> None:
    with pytest.raises(InvalidError, match="held-out episodes only") as caught:
        judge_promotion(good, poor, data, "train")
    assert caught.value.field == "split"


def converted(recorded: Path, output: Path, val_fraction: float) -> Path:
    return convert_directory_to_tfrecord(recorded, output, val_fraction=val_fraction).dataset_dir


def test_episodes_that_a_model_trained_on_are_left_out_though_now_held_out(
    good: Subject, poor: Subject, tmp_path: Path
) -> None:
    recorded = record_episodes(tmp_path / "recorded", 10)
    first = open_dataset(converted(recorded, tmp_path / "datasets", 0.2))
    # Another version of the same name, in which episodes of the first one's training are held out.
    second = open_dataset(converted(recorded, tmp_path / "datasets", 0.7))
    moved = {e.episode_id for e in first.entries("train")} & {e.episode_id for e in second.entries("val")}
    assert moved
    manifest = first.manifest
    of_first = {"name": manifest.name, "version": manifest.version, "source_digest": manifest.source_digest}
    candidate = replace(good, trained_on=of_first)
    for active in (replace(poor, trained_on=of_first), replace(poor, trained_on=None)):
        verdict = judge_promotion(candidate, active, second)
        assert verdict.left_out == len(moved)
        assert verdict.episodes == len(second.entries("val")) - len(moved)
    assert evaluate_subject(candidate, second).left_out == len(moved)
    # The active model's training counts as well.
    of_second = of_first | {"version": second.manifest.version, "source_digest": second.manifest.source_digest}
    verdict = judge_promotion(replace(good, trained_on=of_second), replace(poor, trained_on=of_first), second)
    assert verdict.left_out == len(moved)


def test_without_an_episode_that_is_left_there_is_no_promotion(
    good: Subject, poor: Subject, tmp_path: Path
) -> None:
    first = open_dataset(converted(record_episodes(tmp_path / "recorded", 6), tmp_path / "datasets", 0.01))
    # Fewer recordings under the same name: what was trained on before is held out now.
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for entry in first.entries("train")[:2]:
        name = entry.source.rsplit("/", 1)[-1]
        (fewer / name).write_bytes((tmp_path / "recorded" / name).read_bytes())
    second = open_dataset(
        convert_directory_to_tfrecord(
            fewer, tmp_path / "datasets", val_fraction=0.5, drop_missing=True
        ).dataset_dir
    )
    manifest = first.manifest
    of_first = {"name": manifest.name, "version": manifest.version, "source_digest": manifest.source_digest}
    verdict = judge_promotion(replace(good, trained_on=of_first), poor, second)
    assert not verdict.promoted
    assert "neither model was trained on" in verdict.reason


def test_a_candidate_of_unknown_training_is_not_promoted(good: Subject, poor: Subject, data: Dataset) -> None:
    lost = {"name": "gone", "version": "9.9.9", "source_digest": "0" * 64}
    for unknown in (None, lost):
        verdict = judge_promotion(replace(good, trained_on=unknown), poor, data)
        assert not verdict.promoted
        assert "nobody knows" in verdict.reason


def test_only_steps_of_experts_and_interventions_count(good: Subject, poor: Subject, tmp_path: Path) -> None:
    recorded = record_episodes(tmp_path / "recorded", 8)
    for file in sorted(recorded.iterdir()):
        # The second half of every episode is a policy's, and what it does is absurd.
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines[len(lines) // 2 :]:
            line["step_metadata"]["control_role"] = "policy"
            line["action"]["command"] = [0.5, -0.5]
        lines[0]["step_metadata"]["control_role"] = "intervention"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    mixed = open_dataset(converted(recorded, tmp_path / "datasets", 0.25))
    manifest = mixed.manifest
    here = {"name": manifest.name, "version": manifest.version, "source_digest": manifest.source_digest}
    verdict = judge_promotion(replace(good, trained_on=here), replace(poor, trained_on=here), mixed)
    assert verdict.steps == sum(entry.length // 2 for entry in mixed.entries("val"))
    assert verdict.promoted
    assert verdict.growth is not None
    assert verdict.growth < -0.5


def test_a_split_of_a_policys_own_steps_promotes_nothing(good: Subject, poor: Subject, tmp_path: Path) -> None:
    own = open_dataset(make_dataset(tmp_path, role="policy"))
    manifest = own.manifest
    here = {"name": manifest.name, "version": manifest.version, "source_digest": manifest.source_digest}
    verdict = judge_promotion(replace(good, trained_on=here), poor, own)
    assert not verdict.promoted
    assert "expert's or an intervention's" in verdict.reason


def test_a_model_of_other_features_is_for_a_person_to_replace(
    good: Subject, data: Dataset, tmp_path: Path
) -> None:
    other = open_dataset(make_dataset(tmp_path, count=2, observation="pose"))
    verdict = judge_promotion(good, replace(good, spec=other.spec, name="other"), data)
    assert not verdict.promoted
    assert "other features" in verdict.reason
