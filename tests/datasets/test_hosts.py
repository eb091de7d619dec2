"""The same global batch on any number of hosts, and the step as the only state of the iterator."""

import hashlib
import subprocess
import sys
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.datasets.loader import Batch, Mode, SequenceLoader
from brain_service.errors import CorruptDataError, InvalidError

from .random_datasets import write_dataset

LENGTHS = (5, 12, 1, 8, 3, 30, 17, 2, 9, 9, 4, 21)
MODES = get_args(Mode)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve episodes in three shards."""
    return open_dataset(write_dataset(tmp_path_factory.mktemp("hosts") / "bench" / "1.0.0", LENGTHS, shards=3))


def _loader(dataset: Dataset, mode: Mode, **how: Any) -> SequenceLoader:
    length = None if mode == "episodes" else 8
    return SequenceLoader(dataset, "train", batch_size=8, sequence_length=length, seed=3, mode=mode, **how)


def _bytes(batch: Batch) -> bytes:
    return b"".join(getattr(batch, field.name).tobytes() for field in fields(Batch))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_hosts_rows_are_the_global_batch_byte_for_byte(dataset: Dataset, mode: Mode, hosts: int) -> None:
    whole = _loader(dataset, mode)
    parts = [_loader(dataset, mode, host_index=host, host_count=hosts) for host in range(hosts)]
    for step in (*range(whole.steps_per_epoch + 1), 97):
        expected = whole.batch(step)
        its = [part.batch(step) for part in parts]
        for field in fields(Batch):
            arrays = [getattr(batch, field.name) for batch in its]
            assert all(len(array) == 8 // hosts for array in arrays)
            assert np.concatenate(arrays).tobytes() == getattr(expected, field.name).tobytes(), field.name


def test_a_batch_that_hosts_cannot_share_says_which_can_be(dataset: Dataset) -> None:
    with pytest.raises(
        InvalidError, match=r"batch_size 8 is not divisible by host_count 3: .* use 6 or 9"
    ) as caught:
        _loader(dataset, "windows", host_count=3)
    assert caught.value.field == "batch_size"
    with pytest.raises(InvalidError, match="host_index 2 is not in 0 to 1"):
        _loader(dataset, "windows", host_index=2, host_count=2)
    with pytest.raises(InvalidError, match="host_count 0 is not positive"):
        _loader(dataset, "windows", host_count=0)


@pytest.mark.parametrize("mode", MODES)
def test_the_state_is_the_step_and_a_restored_iterator_goes_on(dataset: Dataset, mode: Mode) -> None:
    loader = _loader(dataset, mode)
    first = loader.batches()
    assert first.get_state() == {"step": 0}
    seen = [_bytes(batch) for batch in islice(first, 7)]
    assert first.get_state() == {"step": 7}
    ahead = [_bytes(batch) for batch in islice(first, 5)]
    first.set_state({"step": 2})
    assert [_bytes(batch) for batch in islice(first, 5)] == seen[2:]
    first.close()
    for host in range(2):
        part = _loader(dataset, mode, host_index=host, host_count=2)
        second = part.batches()
        second.set_state({"step": 7})
        for expected, batch in zip([part.batch(step) for step in range(7, 12)], second, strict=False):
            assert _bytes(batch) == _bytes(expected)
        second.close()
    assert ahead == [_bytes(loader.batch(step)) for step in range(7, 12)]


def test_a_state_that_is_no_step_is_refused(dataset: Dataset) -> None:
    batches = _loader(dataset, "windows").batches()
    for state in ({}, {"step": -1}, {"next_index": 3}, {"step": True}, {"step": 2**62}):
        with pytest.raises(InvalidError, match=r"is not \{'step': n\}"):
            batches.set_state(state)
    batches.close()
    for wrong in ({"prefetch": -1}, {"workers": -1}):
        with pytest.raises(InvalidError, match="is negative"):
            _loader(dataset, "windows").batches(**wrong)


def test_a_new_process_goes_on_with_the_same_batches(dataset: Dataset) -> None:
    script = (
        "import sys, json; from itertools import islice\n"
        "from brain_service.datasets import open_dataset\n"
        "from tests.datasets.test_hosts import _loader, _bytes\n"
        "import hashlib\n"
        "batches = _loader(open_dataset(sys.argv[1]), 'packed').batches()\n"
        "batches.set_state(json.loads(sys.argv[2]))\n"
        "made = b''.join(_bytes(batch) for batch in islice(batches, 4))\n"
        "print(hashlib.sha256(made).hexdigest()); batches.close()"
    )
    batches = _loader(dataset, "packed").batches()
    list(islice(batches, 3))
    state = batches.get_state()
    expected = hashlib.sha256(b"".join(_bytes(batch) for batch in islice(batches, 4))).hexdigest()
    batches.close()
    command = [sys.executable, "-c", script, str(dataset.path), str(state).replace("'", '"')]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.split() == [expected]


def test_worker_processes_make_the_same_batches_in_the_same_order(dataset: Dataset) -> None:
    # In a program of its own, as a trainer is: worker processes import the program that starts them.
    script = (
        "import sys, hashlib; from itertools import islice\n"
        "from brain_service.datasets import open_dataset\n"
        "from tests.datasets.test_hosts import _loader, _bytes\n"
        "if __name__ == '__main__':\n"
        "    batches = _loader(open_dataset(sys.argv[1]), 'windows').batches(5, workers=2)\n"
        "    made = [_bytes(batch) for batch in islice(batches, 4)]\n"
        "    assert batches.get_state() == {'step': 9}\n"
        "    batches.set_state({'step': 6}); made.append(_bytes(next(batches)))\n"
        "    batches.close(); print(hashlib.sha256(b''.join(made)).hexdigest())"
    )
    loader = _loader(dataset, "windows")
    expected = hashlib.sha256(b"".join(_bytes(loader.batch(step)) for step in (5, 6, 7, 8, 6))).hexdigest()
    command = [sys.executable, "-c", script, str(dataset.path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120, check=False
    )
    assert done.stdout.split() == [expected], done.stderr


def test_a_damaged_shard_reaches_the_consumer_through_grain(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "bench" / "1.0.0", LENGTHS)
    (shard,) = folder.glob("*.tfrecord-*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    for prefetch in (0, 3):
        with pytest.raises(CorruptDataError, match=shard.name):
            list(islice(_loader(open_dataset(folder), "windows").batches(prefetch=prefetch), 10))


@given(
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=9),
    hosts=st.integers(1, 7),
    rows=st.integers(1, 3),
    size=st.integers(1, 11),
    seed=st.integers(-(2**63), 2**64 - 1),
    mode=st.sampled_from(MODES),
    data=st.data(),
)
@hypothesis_settings(max_examples=40)
def test_any_number_of_hosts_resumed_at_any_step_makes_the_same_batches(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    hosts: int,
    rows: int,
    size: int,
    seed: int,
    mode: Mode,
    data: st.DataObject,
) -> None:
    if mode == "streams" and len(lengths) < hosts * rows:
        lengths = lengths * (hosts * rows)
    folder = write_dataset(
        tmp_path_factory.mktemp("law") / "bench" / "1.0.0", lengths, shards=1 + len(lengths) % 3
    )
    how: dict[str, Any] = {"batch_size": hosts * rows, "seed": seed, "mode": mode}
    how["sequence_length"] = None if mode == "episodes" else size
    whole = SequenceLoader(open_dataset(folder), "train", **how)
    # Most of all where an epoch ends, where a batch may hold the end of one and the start of the next.
    border = data.draw(st.integers(1, 3)) * whole.steps_per_epoch
    step = max(0, border + data.draw(st.integers(-2, 2)))
    expected = [whole.batch(step + later) for later in range(3)]
    made = []
    for host in range(hosts):
        # Each host opens the dataset itself, stands somewhere else, and is then set.
        part = SequenceLoader(open_dataset(folder), "train", **how, host_index=host, host_count=hosts)
        batches = part.batches(data.draw(st.integers(0, 50)), prefetch=data.draw(st.integers(0, 3)))
        next(batches)
        batches.set_state({"step": step})
        made.append(list(islice(batches, 3)))
        assert batches.get_state() == {"step": step + 3}
        batches.close()
    for later, batch in enumerate(expected):
        for field in fields(Batch):
            joined = np.concatenate([getattr(its[later], field.name) for its in made])
            assert joined.tobytes() == getattr(batch, field.name).tobytes(), field.name


@pytest.mark.parametrize("mode", MODES)
def test_a_row_holds_what_its_pieces_say(dataset: Dataset, mode: Mode) -> None:
    loader = _loader(dataset, mode)
    for step in range(loader.steps_per_epoch):
        batch = loader.batch(step)
        held = np.zeros(batch.mask.shape, bool)
        segment: dict[int, int] = {}
        for row, column, episode, first, steps in loader.pieces(step):
            here = slice(column, column + steps)
            held[row, here] = True
            segment[row] = segment.get(row, 0) + 1
            whole = dataset.vectors("train", episode)
            its = slice(first, first + steps)
            assert batch.observation[row, here, 0].tolist() == [episode] * steps
            assert batch.observation[row, here, 1].tolist() == list(range(first, first + steps))
            assert np.array_equal(batch.action[row, here], whole.action[its])
            assert np.array_equal(batch.reward[row, here], whole.reward[its])
            assert (batch.segment_id[row, here] == segment[row]).all()
            assert batch.next_mask[row, here].tolist() == [1.0] * (steps - 1) + [0.0]
            # The state is fresh at an episode's start, and wherever a sequence follows another.
            fresh = first == 0 or column > 0
            assert batch.is_first[row, here].tolist() == [float(fresh)] + [0.0] * (steps - 1)
            before = whole.action[first - 1] if not fresh else np.zeros(2, np.float32)
            assert np.array_equal(batch.previous_action[row, column], before)
            assert batch.previous_reward[row, column] == (0 if fresh else whole.reward[first - 1])
            assert np.array_equal(batch.previous_action[row, column + 1 : here.stop], whole.action[its][:-1])
            assert np.array_equal(batch.previous_reward[row, column + 1 : here.stop], whole.reward[its][:-1])
        assert np.array_equal(batch.mask.astype(bool), held)
        for field in fields(Batch):
            assert not getattr(batch, field.name)[~held].any(), field.name


def test_efficiency_is_the_share_of_real_steps(dataset: Dataset) -> None:
    for mode in MODES:
        loader = _loader(dataset, mode)
        if mode in ("episodes", "streams"):
            masks = [loader.batch(step).mask for step in range(loader.steps_per_epoch)]
            share = sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks)
            assert loader.efficiency == pytest.approx(share)
        else:
            # Batches of rows span epochs: each row once comes out of `rows` batches of 8, eight times.
            rows = len({piece[1:] for step in range(200) for piece in loader.pieces(step) if piece.column == 0})
            assert loader.efficiency == pytest.approx(sum(LENGTHS) / (8 * rows))
    assert _loader(dataset, "packed").efficiency > _loader(dataset, "windows").efficiency


def test_an_empty_split_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="split 'train' is empty"):
        _loader(open_dataset(write_dataset(tmp_path / "bench" / "1.0.0", [])), "windows")


def test_modes_ask_for_what_they_need(dataset: Dataset) -> None:
    with pytest.raises(InvalidError, match="'packed' needs a sequence_length"):
        SequenceLoader(dataset, "train", batch_size=1, sequence_length=None, seed=0, mode="packed")
    with pytest.raises(InvalidError, match="whole episodes need at least 30"):
        SequenceLoader(dataset, "train", batch_size=1, sequence_length=8, seed=0, mode="episodes")
