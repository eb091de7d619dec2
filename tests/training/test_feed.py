"""Numbers that must not reach a model: found before the first step, or at the batch, with their place."""

import json
import shutil
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from brain_service.datasets.loader import open_dataset
from brain_service.datasets.pipeline import BatchIterator
from brain_service.datasets.tfrecord import frame, unframe
from brain_service.errors import CorruptDataError
from brain_service.training.feed import Feed, InputClock
from brain_service.training.loop import train
from brain_service.training.normalisation import Normaliser
from brain_service.training.objective import Sequences
from brain_service.training.sharding import make_mesh
from tests.training.tasks import tiny


@pytest.fixture
def copied(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, to damage."""
    return Path(shutil.copytree(dataset, tmp_path / "1.0.0"))


COLUMNS = {"observation": "observation/state", "action": "action/command", "reward": "reward"}


def put_infinity(folder: Path, name: str, episode: int, split: str = "train") -> tuple[str, int]:
    """Make one stored number infinite, with checksums that hold: a writer that checked nothing.

    Returns the episode's id and the step.
    """
    opened = open_dataset(folder)
    entry = opened.entries(split)[episode]
    column = np.asarray(opened.read(split, episode)[COLUMNS[name]], np.float32)
    shard = folder / entry.shard
    whole = bytearray(shard.read_bytes())
    place = slice(entry.offset_bytes, entry.offset_bytes + entry.size_bytes)
    record = unframe(bytes(whole[place]), str(shard), entry.offset_bytes)
    # A step whose number stands nowhere else in the record: here a reward may repeat an observation.
    values = [(step, column[step].ravel()[-1].tobytes()) for step in range(10, len(column) - 2)]
    step, value = next((step, value) for step, value in values if record.count(value) == 1)
    whole[place] = frame(record.replace(value, np.float32(np.inf).tobytes()))
    shard.write_bytes(whole)
    return entry.episode_id, step


def test_nan_in_the_data_is_an_error_before_any_step(copied: Path, tmp_path: Path) -> None:
    path = copied / "statistics.json"
    document = json.loads(path.read_text())
    document["observation"]["state"]["mean"][1] = None  # what NaN in a record makes of it
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptDataError, match=r"mean\[1\].*NaN or an infinity in the episodes"):
        train(copied, tmp_path / "run", tiny())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["observation", "action", "reward"])
def test_a_number_that_is_not_finite_is_named_with_episode_and_step(name: str, copied: Path) -> None:
    episode, at = put_infinity(copied, name, 2)
    opened = open_dataset(copied)
    config = tiny(mode="packed")
    feed = Feed(opened, config, Normaliser.from_statistics(opened.statistics), make_mesh())
    with pytest.raises(CorruptDataError, match=f"of episode {episode} is not finite at its step ({at}|{at + 1});"):
        for step in range(20):
            feed.batch(step)


def test_time_in_which_the_devices_worked_is_no_waiting(dataset: Path) -> None:
    opened = open_dataset(dataset)
    feed = Feed(opened, tiny(), Normaliser.from_statistics(opened.statistics), make_mesh())

    def slow(step: int) -> Sequences:
        time.sleep(0.02)
        return feed.batch(step)

    clock = InputClock()
    with closing(BatchIterator(slow, 0, prefetch=0)) as batches:
        clock.take(batches, lambda: True)
        assert clock.waited_s == 0.0
        clock.take(batches, lambda: False)
        assert clock.waited_s >= 0.02
