import itertools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from brain_service.errors import InvalidError, NotFoundError
from brain_service.training import loop
from brain_service.training.checkpointing import Checkpoints, load_checkpoint
from brain_service.training.loop import TrainProgress, TrainResult, train
from brain_service.training.sharding import make_mesh, require_divisible
from tests.training.tasks import make_dataset, same_parameters, tiny


def test_a_run_ends_with_a_checkpoint_at_its_last_step(finished: TrainResult) -> None:
    assert (finished.step, finished.completed, finished.resumed_from) == (6, True, None)
    assert finished.final_loss is not None and np.isfinite(finished.final_loss)
    assert load_checkpoint(finished.checkpoint_dir).step == 6


def test_training_moves_the_parameters(finished: TrainResult, dataset: Path, tmp_path: Path) -> None:
    untrained = train(dataset, tmp_path / "untrained", tiny(steps=0))
    assert (untrained.step, untrained.completed, untrained.final_loss) == (0, True, None)
    assert not same_parameters(finished.checkpoint_dir, untrained.checkpoint_dir)


def test_a_stopped_run_resumes_to_the_same_bits(finished: TrainResult, dataset: Path, tmp_path: Path) -> None:
    asked = itertools.count()
    stopped = train(dataset, tmp_path / "b", tiny(), should_stop=lambda: next(asked) == 3)
    assert (stopped.step, stopped.completed) == (3, False)
    resumed = train(dataset, tmp_path / "b", tiny())
    assert (resumed.resumed_from, resumed.step, resumed.completed) == (3, 6, True)
    assert same_parameters(finished.checkpoint_dir, resumed.checkpoint_dir)


def test_a_finished_run_has_nothing_left_to_do(finished: TrainResult, dataset: Path) -> None:
    again = train(dataset, finished.checkpoint_dir, tiny())
    assert (again.resumed_from, again.step, again.final_loss) == (6, 6, None)


def test_only_the_newest_checkpoints_stay(finished: TrainResult) -> None:
    with Checkpoints(finished.checkpoint_dir) as checkpoints:
        assert checkpoints.steps() == [4, 6]


def test_progress_is_told_and_ends_at_the_last_step(dataset: Path, tmp_path: Path) -> None:
    told: list[TrainProgress] = []
    train(dataset, tmp_path / "run", tiny(), on_progress=told.append)
    assert told[-1].step == told[-1].steps == 6
    assert {"loss", "action", "next_observation", "reward", "value", "action_rmse"} <= set(told[-1].metrics)
    assert [progress.step for progress in told] == sorted(progress.step for progress in told)


@pytest.mark.parametrize(
    ("field", "changed"), [("seed", {"seed": 1}), ("steps", {"steps": 9}), ("model", {"model": {"d_s": 4}})]
)
def test_checkpoints_of_another_run_are_not_taken_over(
    field: str, changed: dict[str, object], finished: TrainResult, dataset: Path
) -> None:
    with pytest.raises(InvalidError, match="directory of its own") as caught:
        train(dataset, finished.checkpoint_dir, tiny(**changed))
    assert caught.value.field == field


def test_checkpoints_of_other_data_are_not_taken_over(finished: TrainResult, tmp_path: Path) -> None:
    other = make_dataset(tmp_path, count=5)
    with pytest.raises(InvalidError, match="made with another"):
        train(other, finished.checkpoint_dir, tiny())


def test_a_policys_own_steps_are_nothing_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="demonstrations") as caught:
        train(make_dataset(tmp_path, role="policy"), tmp_path / "run", tiny())
    assert caught.value.field == "control_role"
    assert not (tmp_path / "run").exists()


def test_no_dataset_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no dataset"):
        train(tmp_path / "none", tmp_path / "run", tiny())
    assert not (tmp_path / "run").exists()


def test_a_dataset_smaller_than_a_batch_is_repeated(tmp_path: Path) -> None:
    small = make_dataset(tmp_path, count=2, length=3)
    assert train(small, tmp_path / "run", tiny()).completed


def test_more_streams_than_episodes_are_refused_before_anything_is_made(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="as many episodes") as caught:
        train(dataset, tmp_path / "run", tiny(mode="streams", batch_size=7))
    assert caught.value.field == "batch_size"
    assert not (tmp_path / "run").exists()


def test_a_split_without_episodes_is_said(dataset: Path, tmp_path: Path) -> None:
    emptied = Path(shutil.copytree(dataset, tmp_path / "1.0.0"))
    manifest = json.loads((emptied / "manifest.json").read_text())
    manifest["splits"]["train"] = []
    manifest["shards"] = [shard for shard in manifest["shards"] if shard["split"] != "train"]
    (emptied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidError, match="record more episodes") as caught:
        train(emptied, tmp_path / "run", tiny())
    assert caught.value.field == "split"
    assert not (tmp_path / "run").exists()


def test_rows_that_devices_cannot_share_are_refused_with_sizes_that_would_do() -> None:
    mesh = make_mesh(devices=jax.devices() * 4)  # a stand-in for four: only its size is looked at
    with pytest.raises(InvalidError, match="use 4 or 8") as caught:
        require_divisible(6, mesh)
    assert caught.value.field == "batch_size"
    with pytest.raises(InvalidError, match="fsdp 3 does not divide 4 devices"):
        make_mesh(3, jax.devices() * 4)


def test_a_checkpoint_of_another_robot_is_refused_by_its_spec(finished: TrainResult, tmp_path: Path) -> None:
    other = make_dataset(tmp_path, observation="pose")
    with pytest.raises(InvalidError, match="made with another spec") as caught:
        train(other, finished.checkpoint_dir, tiny())
    assert caught.value.field == "spec"


def test_a_gate_holds_the_run_between_steps_and_the_bits_stay_the_same(
    finished: TrainResult, dataset: Path, tmp_path: Path
) -> None:
    asked = itertools.count()
    told: list[str] = []

    def reason() -> str:
        number = next(asked)
        return "81 C" if 3 <= number < 6 else ""

    rested = train(dataset, tmp_path / "run", tiny(), hooks=loop.Hooks(pause_reason=reason, on_pause=told.append))
    assert told == ["81 C", ""]
    assert rested.completed
    assert rested.paused_s >= 2 * loop.PAUSE_POLL_S
    assert same_parameters(finished.checkpoint_dir, rested.checkpoint_dir)


def test_a_run_that_rests_can_be_stopped(dataset: Path, tmp_path: Path) -> None:
    told: list[str] = []
    hooks = loop.Hooks(pause_reason=lambda: "no power", on_pause=told.append, should_stop=lambda: bool(told))
    stopped = train(dataset, tmp_path / "run", tiny(), hooks=hooks)
    assert (stopped.step, stopped.completed) == (0, False)
    assert told == ["no power", ""]
