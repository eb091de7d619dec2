"""Batches of windows: what they hold, and that the step number is their only state."""

import shutil
import subprocess
import sys
import threading
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from brain_service.datasets.columns import PROFILES, Profile
from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.datasets.loader import Batch, SequenceLoader
from brain_service.datasets.rows import plan_windows
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError
from brain_service.spec import to_vector

from .recording import record, record_many
from .samples import Recipe, make_episode, recipes

LENGTHS = (5, 12, 1, 8, 3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Episodes of 5, 12, 1, 8 and 3 steps, all in the training split."""
    return _convert(tmp_path_factory.mktemp("loader"), "oxe", final=False)


def _convert(root: Path, profile: Profile, final: bool) -> Dataset:
    record_many(root / "in", LENGTHS, final=final)
    report = convert_directory_to_tfrecord(root / "in", root / "out", val_fraction=0.0, profile=profile)
    return open_dataset(report.dataset_dir)


def _loader(dataset: Dataset, batch_size: int = 4, sequence_length: int = 4, seed: int = 1) -> SequenceLoader:
    return SequenceLoader(dataset, "train", batch_size=batch_size, sequence_length=sequence_length, seed=seed)


def _assert_equal(one: Batch, two: Batch) -> None:
    for field in fields(Batch):
        assert np.array_equal(getattr(one, field.name), getattr(two, field.name)), field.name


@given(recipe=recipes, profile=st.sampled_from(PROFILES), size=st.integers(1, 9))
@hypothesis_settings(max_examples=25)
def test_any_episode_comes_out_of_the_loader_as_it_was_captured(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, profile: Profile, size: int
) -> None:
    episode = replace(recipe, episode_id="e0").build()
    root = tmp_path_factory.mktemp("law")
    record(root / "in", [episode])
    report = convert_directory_to_tfrecord(root / "in", root / "out", val_fraction=0.0, profile=profile, jobs=1)
    loader = _loader(open_dataset(report.dataset_dir), batch_size=1, sequence_length=size)
    steps = len(episode) + (profile == "rlds" and episode.final_observation is not None)
    pieces = {loader.pieces(step)[0].first: loader.batch(step) for step in range(loader.steps_per_epoch)}
    assert sorted(pieces) == list(range(0, steps, size))
    for t in range(len(episode)):
        batch, place = pieces[t - t % size], t % size
        for part, spec, found in (
            (episode.observation, episode.spec.observation, batch.observation),
            (episode.action, episode.spec.action, batch.action),
        ):
            expected = to_vector({path: np.asarray(part[path][t]) for path in spec if spec[path].is_numeric}, spec)
            assert found[0, place].tobytes() == expected.tobytes()
        assert batch.reward[0, place].tobytes() == np.float32(episode.reward[t]).tobytes()
        assert batch.mask[0, place] == 1
    shutil.rmtree(root)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 20))
def test_each_step_lies_in_exactly_one_window(lengths: list[int], sequence_length: int) -> None:
    seen = [
        (episode, step)
        for episode, first, count in plan_windows(np.array(lengths, np.int64), sequence_length).tolist()
        for step in range(first, first + count)
    ]
    assert sorted(seen) == [(e, t) for e, length in enumerate(lengths) for t in range(length)]


@pytest.mark.parametrize("sequence_length", [1, 4, 12, 20])
def test_a_batch_holds_the_episodes_steps_and_zeros_behind_them(dataset: Dataset, sequence_length: int) -> None:
    loader = _loader(dataset, batch_size=3, sequence_length=sequence_length)
    for step in range(loader.steps_per_epoch):
        batch = loader.batch(step)
        for row, _, episode, first, _ in loader.pieces(step):
            whole = dataset.vectors("train", episode)
            for t in range(sequence_length):
                i = first + t
                if i >= len(whole):
                    for field in fields(Batch):
                        assert not getattr(batch, field.name)[row, t].any()
                    continue
                assert np.array_equal(batch.observation[row, t], whole.observation[i])
                assert np.array_equal(batch.action[row, t], whole.action[i])
                assert batch.reward[row, t] == whole.reward[i]
                assert batch.is_terminal[row, t] == whole.is_terminal[i]
                assert batch.is_first[row, t] == (i == 0)
                before = whole.action[i - 1] if i else np.zeros(2)
                assert np.array_equal(batch.previous_action[row, t], before)
                assert batch.previous_reward[row, t] == (whole.reward[i - 1] if i else 0)
                assert batch.mask[row, t] == batch.valid_mask[row, t] == batch.loss_mask[row, t] == 1
                assert batch.next_mask[row, t] == (t + 1 < sequence_length and i + 1 < len(whole))


def test_shapes_and_dtypes(dataset: Dataset) -> None:
    batch = _loader(dataset, batch_size=2, sequence_length=7).batch(0)
    shapes = {field.name: getattr(batch, field.name).shape for field in fields(Batch)}
    assert shapes.pop("observation") == (2, 7, 3)
    assert shapes.pop("action") == shapes.pop("previous_action") == (2, 7, 2)
    assert shapes.pop("image") == (2, 7, 0, 0, 0)
    assert set(shapes.values()) == {(2, 7)}
    dtypes = {field.name: getattr(batch, field.name).dtype for field in fields(Batch)}
    assert dtypes.pop("segment_id") == np.int32 and dtypes.pop("image") == np.uint8
    assert set(dtypes.values()) == {np.dtype(np.float32)}


@pytest.mark.parametrize("batch_size", [1, 3, 4, 30])
def test_an_epoch_shows_every_window_once_also_when_batches_span_epochs(dataset: Dataset, batch_size: int) -> None:
    loader = _loader(dataset, batch_size=batch_size)
    count = sum(-(-length // 4) for length in LENGTHS)
    assert loader.steps_per_epoch == -(-count // batch_size)
    rows = [piece[2:] for step in range(-(-3 * count // batch_size)) for piece in loader.pieces(step)]
    epochs = [rows[start : start + count] for start in range(0, 3 * count, count)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == count for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_same_seed_and_step_give_the_same_batch_and_another_seed_does_not(dataset: Dataset) -> None:
    again = open_dataset(dataset.path, cache_bytes=1)
    for step in (7, 0, 3):
        _assert_equal(_loader(dataset).batch(step), _loader(again).batch(step))
    assert [_loader(dataset).pieces(n) for n in range(3)] != [_loader(dataset, seed=2).pieces(n) for n in range(3)]


def test_another_process_gets_the_same_batch(dataset: Dataset) -> None:
    script = (
        "import hashlib, sys; from brain_service.datasets import SequenceLoader, open_dataset\n"
        "dataset = open_dataset(sys.argv[1])\n"
        "batch = SequenceLoader(dataset, 'train', batch_size=4, sequence_length=4, seed=1).batch(5)\n"
        "print(hashlib.sha256(b''.join(vars(batch)[name].tobytes() for name in sorted(vars(batch)))).hexdigest())"
    )
    arguments = [sys.executable, "-c", script, str(dataset.path)]
    answers = {subprocess.run(arguments, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(answers) == 1
    assert len(answers.pop().strip()) == 64


def test_iteration_is_the_batches_from_any_step_on(dataset: Dataset) -> None:
    loader = _loader(dataset)
    for start in (0, 5):
        for offset, batch in enumerate(islice(loader.batches(start), 6)):
            _assert_equal(batch, loader.batch(start + offset))
    _assert_equal(next(iter(loader)), loader.batch(0))


def test_leaving_an_iteration_ends_its_thread(dataset: Dataset) -> None:
    before = set(threading.enumerate())
    batches = _loader(dataset).batches()
    next(batches)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 1
    batches.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_only_imitated_roles_count_in_the_loss(tmp_path: Path) -> None:
    roles = ["policy", "policy", "intervention", "expert", "policy"]
    record(tmp_path / "in", [make_episode(roles=roles)])
    dataset = open_dataset(convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out").dataset_dir)
    batch = SequenceLoader(dataset, "train", batch_size=1, sequence_length=6, seed=0).batch(0)
    assert batch.loss_mask[0].tolist() == [0, 0, 1, 1, 0, 0]
    assert batch.mask[0].tolist() == batch.valid_mask[0].tolist() == [1, 1, 1, 1, 1, 0]
    own = SequenceLoader(dataset, "train", batch_size=1, sequence_length=6, seed=0, roles=("policy",)).batch(0)
    assert own.loss_mask[0].tolist() == [1, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("final", [True, False])
def test_the_last_rlds_step_is_seen_but_not_learned_from(tmp_path: Path, final: bool) -> None:
    dataset = _convert(tmp_path, "rlds", final)
    assert dataset.lengths("train").tolist() == [length + final for length in LENGTHS]
    loader = _loader(dataset, batch_size=len(LENGTHS), sequence_length=13)
    batch = loader.batch(0)
    for row, _, episode, _, _ in loader.pieces(0):
        last = LENGTHS[episode] + final - 1
        assert batch.mask[row].sum() == last + 1
        assert batch.loss_mask[row].sum() == batch.valid_mask[row].sum() == batch.next_mask[row].sum() == last
        assert batch.loss_mask[row, last] == batch.valid_mask[row, last] == 0
        # The action before it ended the episode; without that its value would be learned from the last step's,
        # which nothing teaches.
        assert batch.is_terminal[row].nonzero()[0].tolist() == [*range(last)[-1:], last]


def test_an_error_while_prefetching_reaches_the_consumer(tmp_path: Path) -> None:
    dataset = _convert(tmp_path, "oxe", final=False)
    shard = dataset.path / dataset.manifest.shards[0].file
    content = bytearray(shard.read_bytes())
    content[200] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptDataError, match=shard.name):
        list(islice(_loader(dataset).batches(), 10))


def test_wrong_sizes_steps_and_splits_are_named(dataset: Dataset) -> None:
    with pytest.raises(InvalidError, match="batch_size 0 is not positive"):
        _loader(dataset, batch_size=0)
    with pytest.raises(InvalidError, match="sequence_length -1 is not positive"):
        _loader(dataset, sequence_length=-1)
    with pytest.raises(InvalidError, match="step -1 is negative"):
        _loader(dataset).batch(-1)
    with pytest.raises(NotFoundError, match="no split 'val'"):
        SequenceLoader(dataset, "val", batch_size=1, sequence_length=1, seed=0)
