import gc
import resource
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brain_service.datasets.loader import open_dataset
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError, UnavailableError
from brain_service.training.checkpointing import Checkpoints, load_checkpoint
from brain_service.training.held_out import Standing
from brain_service.training.loop import TrainResult, train
from brain_service.training.run import Run
from brain_service.training.sharding import make_mesh
from brain_service.training.step import init_state, make_train_step
from tests.training.tasks import TINY, tiny


@pytest.fixture
def copied(finished: TrainResult, tmp_path: Path) -> Path:
    """A copy of the finished run, to damage."""
    return Path(shutil.copytree(finished.checkpoint_dir, tmp_path / "copy"))


def flip_bit(folder: Path) -> None:
    """Damage the largest file below a folder."""
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def test_a_checkpoint_stands_alone(finished: TrainResult, dataset: Path) -> None:
    loaded, opened = load_checkpoint(finished.checkpoint_dir), open_dataset(dataset)
    assert loaded.spec == opened.spec
    assert loaded.config == tiny().model_config(3, 2)
    assert loaded.control_period_s == pytest.approx(0.02)
    assert loaded.normaliser.action_high.tolist() == opened.statistics.vector("action", "max").tolist()
    assert loaded.meta["dataset"]["version"] == opened.manifest.version


def test_an_older_step_can_be_asked_for(finished: TrainResult) -> None:
    assert load_checkpoint(finished.checkpoint_dir, 4).step == 4
    with pytest.raises(NotFoundError, match=r"step 5.*4, 6"):
        load_checkpoint(finished.checkpoint_dir, 5)


def test_the_folder_that_a_cloud_run_leaves_is_one_too(finished: TrainResult, tmp_path: Path) -> None:
    shutil.copytree(finished.checkpoint_dir, tmp_path / "run" / "checkpoints")
    found, expected = load_checkpoint(tmp_path / "run"), load_checkpoint(finished.checkpoint_dir)
    assert found.step == expected.step and found.meta == expected.meta
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(NotFoundError, match="does not hold any checkpoint"):
        load_checkpoint(tmp_path / "run")


def test_a_folder_without_checkpoints_says_what_to_do(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(NotFoundError, match="train first"):
            load_checkpoint(folder)


@pytest.mark.parametrize("item", ["params", "opt_state", "meta"])
def test_a_damaged_checkpoint_is_passed_over_for_the_newest_that_verifies(item: str, copied: Path) -> None:
    flip_bit(copied / "6" / item)
    with pytest.raises(CorruptDataError, match=f"6: {item}/"):
        load_checkpoint(copied, 6)
    assert load_checkpoint(copied).step == 4


def test_a_missing_file_is_damage_too(copied: Path) -> None:
    shutil.rmtree(copied / "6" / "meta")
    with pytest.raises(CorruptDataError, match="meta"):
        load_checkpoint(copied, 6)


def test_nothing_intact_is_an_error_not_a_guess(copied: Path) -> None:
    for step in ("4", "6"):
        flip_bit(copied / step / "params")
    with pytest.raises(CorruptDataError):
        load_checkpoint(copied)


def test_training_goes_on_from_the_newest_checkpoint_that_verifies(
    copied: Path, finished: TrainResult, dataset: Path
) -> None:
    flip_bit(copied / "6" / "opt_state")
    resumed = train(dataset, copied, tiny())
    assert (resumed.resumed_from, resumed.step) == (4, 6)
    pair = [jax.tree.leaves(load_checkpoint(folder).params) for folder in (copied, finished.checkpoint_dir)]
    assert all(np.array_equal(a, b) for a, b in zip(*pair, strict=True))


def test_a_half_written_step_does_not_count(copied: Path) -> None:
    shutil.copytree(copied / "6", copied / "8.orbax-checkpoint-tmp")
    shutil.copytree(copied / "6", copied / "10")
    (copied / "10" / "sha256.json").unlink()  # killed between the data and its hashes
    with Checkpoints(copied) as checkpoints:
        assert checkpoints.steps() == [4, 6]
    assert load_checkpoint(copied).step == 6


def test_a_full_medium_is_said_with_the_next_step_and_what_was_there_stays(copied: Path) -> None:
    config = tiny()
    state = init_state(config.model_config(3, 2), config)._replace(step=jnp.asarray(7, jnp.int32))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(copied, keep=2) as checkpoints:
        # The kernel refuses to let any file of this process grow: what a full card does, for one process.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, unlimited[1]))
        try:
            with pytest.raises(UnavailableError, match="make room"):
                checkpoints.save(state, {})
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert load_checkpoint(copied).step == 6


def test_a_file_in_place_of_the_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(UnavailableError, match="choose another"):
        Checkpoints(tmp_path / "run", keep=1)


class SlowMedium(Checkpoints):
    """Checkpoints on a medium that takes as long as the test likes."""

    def __init__(self, folder: Path, keep: int) -> None:
        super().__init__(folder, keep)
        self.written = threading.Event()

    def _seal(self, step: int) -> None:
        assert self.written.wait(60)
        super()._seal(step)


def test_steps_do_not_wait_for_the_medium_and_what_was_saved_is_of_its_step(copied: Path, dataset: Path) -> None:
    config = tiny()
    opened = open_dataset(dataset)
    run = Run(opened, copied, config, make_mesh())
    train_step = make_train_step(run.model, config, run.mesh)
    state = init_state(run.model, config, run.mesh)
    before = jax.tree.map(np.array, state.params)
    medium = SlowMedium(copied, keep=1)
    with medium as checkpoints:
        checkpoints.save(state._replace(step=jnp.asarray(8, jnp.int32)), run.meta(Standing()))
        # The next steps write over the buffers that are being saved, and end, while the medium is still busy.
        for number in range(2):
            state, metrics = train_step(state, run.feed.batch(number))
        jax.block_until_ready(metrics)
        assert checkpoints.steps() == [4, 6], "it counts before it was sealed, or old ones went before"
        medium.written.set()
        checkpoints.wait()
        assert checkpoints.steps() == [8]
    saved = load_checkpoint(copied, 8).params
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(saved), jax.tree.leaves(before), strict=True))


def test_what_a_kill_left_unfinished_is_cleared_by_the_next_run(copied: Path) -> None:
    shutil.copytree(copied / "6", copied / "8.orbax-checkpoint-tmp-1")
    shutil.copytree(copied / "6", copied / "10")
    (copied / "10" / "sha256.json").unlink()
    with Checkpoints(copied, keep=2):
        assert sorted(path.name for path in copied.iterdir()) == ["4", "6", "logs"]


# Orbax leaves the reads that it gave up to the garbage collector, which complains of each.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_checkpoint_that_another_version_wrote_is_refused_and_kept(copied: Path, dataset: Path) -> None:
    with Checkpoints(copied) as checkpoints:
        config = tiny(model=TINY | {"d_h": 24})
        with pytest.raises(InvalidError, match="another version"):
            Run(open_dataset(dataset), copied, config, make_mesh())._restore(checkpoints, 6)
    gc.collect()
    assert load_checkpoint(copied).step == 6
