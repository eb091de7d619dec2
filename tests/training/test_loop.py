import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from brain_service.errors import InvalidError, NotFoundError
from brain_service.training.checkpointing import Checkpoints, load_checkpoint
from brain_service.training.loop import TrainProgress, TrainResult, train
from tests.training.tasks import make_dataset, tiny


def same_parameters(left: Path, right: Path) -> bool:
    pair = [jax.tree.leaves(load_checkpoint(folder).params) for folder in (left, right)]
    return all(np.array_equal(a, b) for a, b in zip(*pair, strict=True))


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


def test_a_killed_run_resumes_to_the_same_bits(finished: TrainResult, dataset: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from brain_service.training.loop import train; from tests.training.tasks import tiny\n"
        "train(sys.argv[1], sys.argv[2], tiny(checkpoint_every=1))"
    )
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", script, str(dataset), str(killed)]
    cache = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.values["jax_compilation_cache_dir"]),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], env=cache) as process:
        deadline_s = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline_s:
            if any(child.name.isdigit() and int(child.name) >= 2 for child in _children(killed)):
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
    assert process.returncode == -signal.SIGKILL, "it was over before it could be killed"
    resumed = train(dataset, killed, tiny(checkpoint_every=1))
    assert resumed.resumed_from is not None and 0 < resumed.resumed_from < 6
    assert same_parameters(resumed.checkpoint_dir, finished.checkpoint_dir)


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


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
