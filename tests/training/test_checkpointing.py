import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from brain_service.datasets.loader import open_dataset
from brain_service.errors import CorruptDataError, NotFoundError
from brain_service.training.checkpointing import Checkpoints, load_checkpoint, tree_digest
from brain_service.training.loop import TrainResult, train
from tests.training.tasks import tiny


@pytest.fixture
def copied(finished: TrainResult, tmp_path: Path) -> Path:
    """A copy of the finished run, to damage."""
    return Path(shutil.copytree(finished.checkpoint_dir, tmp_path / "copy"))


def flip_bits(folder: Path) -> None:
    """Damage every data file of one item of a checkpoint."""
    files = [path for path in folder.rglob("*") if path.is_file() and "d" in path.parent.name]
    assert files
    for path in files:
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


def test_a_folder_without_checkpoints_says_what_to_do(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(NotFoundError, match="train first"):
            load_checkpoint(folder)


@pytest.mark.parametrize("item", ["params", "meta"])
def test_a_damaged_checkpoint_is_passed_over_for_the_newest_that_verifies(item: str, copied: Path) -> None:
    shutil.rmtree(copied / "6" / item) if item == "meta" else flip_bits(copied / "6" / item)
    with pytest.raises(CorruptDataError, match="6"):
        load_checkpoint(copied, 6)
    assert load_checkpoint(copied).step == 4


def test_nothing_intact_is_an_error_not_a_guess(copied: Path) -> None:
    for step in ("4", "6"):
        flip_bits(copied / step / "params")
    with pytest.raises(CorruptDataError):
        load_checkpoint(copied)


def test_training_goes_on_from_the_newest_checkpoint_that_verifies(
    copied: Path, finished: TrainResult, dataset: Path
) -> None:
    flip_bits(copied / "6" / "opt_state")
    resumed = train(dataset, copied, tiny())
    assert (resumed.resumed_from, resumed.step) == (4, 6)
    pair = [jax.tree.leaves(load_checkpoint(folder).params) for folder in (copied, finished.checkpoint_dir)]
    assert all(np.array_equal(a, b) for a, b in zip(*pair, strict=True))


def test_a_half_written_step_does_not_count(copied: Path) -> None:
    shutil.copytree(copied / "6", copied / "8.orbax-checkpoint-tmp")
    with Checkpoints(copied) as checkpoints:
        assert checkpoints.steps() == [4, 6]


def test_the_digest_sees_values_names_shapes_and_dtypes() -> None:
    base = {"a": np.zeros((2, 3), np.float32)}
    others = [
        {"b": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((3, 2), np.float32)},
        {"a": np.zeros((2, 3), np.int32)},
        {"a": np.eye(2, 3, dtype=np.float32)},
    ]
    assert len({tree_digest(tree) for tree in [base, *others]}) == 5
    assert tree_digest(base) == tree_digest({"a": np.zeros((2, 3), np.float32)})
