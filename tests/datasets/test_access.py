"""Windows read by byte ranges: what they hold, what is checked, and how little memory that takes."""

import pickle
from pathlib import Path

import numpy as np
import orjson
import pytest

from brain_service.datasets.access import Steps
from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.datasets.example import decode_example, encode_example
from brain_service.datasets.stored import BLOCK_BYTES
from brain_service.datasets.tfrecord import frame
from brain_service.datasets.wire import find_spans
from brain_service.errors import CorruptDataError, NotFoundError

from .random_datasets import write_dataset
from .recording import record_many
from .samples import RICH_SPEC

LENGTHS = [3, 5, 4, 6]


@pytest.fixture
def rich(tmp_path: Path) -> Dataset:
    """Episodes with every kind of feature."""
    record_many(tmp_path / "in", LENGTHS, spec=RICH_SPEC)
    return open_dataset(
        convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", val_fraction=0.0).dataset_dir
    )


def _require_all_windows(dataset: Dataset) -> None:
    for episode, length in enumerate(dataset.lengths("train").tolist()):
        whole = dataset.vectors("train", episode)
        spans = [Steps(episode, first, stop) for first in range(length) for stop in range(first + 1, length + 1)]
        for span, window in zip(spans, dataset.windows("train", spans), strict=True):
            here = slice(span.first, span.stop)
            for name in ("observation", "action", "reward", "is_first", "is_terminal", "valid"):
                found, expected = getattr(window, name), getattr(whole, name)[here]
                assert found.dtype == expected.dtype
                assert found.tobytes() == expected.tobytes(), name
            assert tuple(window.roles[role] for role in window.role) == whole.control_role[here]


def test_a_window_is_the_same_steps_of_the_whole_episode_whatever_the_features(rich: Dataset) -> None:
    _require_all_windows(rich)


def test_roles_that_change_within_an_episode_are_told_apart(tmp_path: Path) -> None:
    roles = ["policy"] * 3 + ["intervention"] * 2 + ["policy"] + ["expert"] * 4
    record_many(tmp_path / "in", [10], roles=roles)
    dataset = open_dataset(convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out").dataset_dir)
    _require_all_windows(dataset)
    (window,) = dataset.windows("train", [Steps(0, 2, 7)])
    assert [window.roles[role] for role in window.role] == roles[2:7]


def _rewrite(dataset: Dataset, payload: bytes) -> Dataset:
    """Put another example in the place of the split's only episode."""
    shard = dataset.manifest.shards[0].file
    record = frame(payload)
    (dataset.path / shard).write_bytes(record)
    manifest = orjson.loads((dataset.path / "manifest.json").read_bytes())
    manifest["splits"]["train"][0]["size_bytes"] = manifest["shards"][0]["size_bytes"] = len(record)
    (dataset.path / "manifest.json").write_bytes(orjson.dumps(manifest))
    return open_dataset(dataset.path)


def test_a_layout_that_is_legal_but_not_canonical_reads_the_same(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "a" / "1.0.0", [6]))
    expected = dataset.vectors("train", 0)
    (shard,) = dataset.path.glob("*.tfrecord-*")
    features = decode_example(shard.read_bytes()[12:-4], "here")
    names = sorted(features)
    # Protobuf joins messages that follow each other: one example in two pieces.
    halves = [encode_example({name: features[name] for name in part}) for part in (names[::2], names[1::2])]
    assert find_spans(b"".join(halves)) is None
    again = _rewrite(dataset, b"".join(halves))
    assert np.array_equal(again.vectors("train", 0).observation, expected.observation)
    _require_all_windows(again)


def test_an_episode_that_lacks_a_feature_is_named(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "a" / "1.0.0", [6]))
    (shard,) = dataset.path.glob("*.tfrecord-*")
    features = decode_example(shard.read_bytes()[12:-4], "here")
    for name, wrong in (
        ("steps/reward", None),
        ("steps/reward", np.zeros(5, np.float32)),
        ("steps/is_first", np.zeros(6, np.float32)),
        ("steps/observation/state", [b"a"] * 18),
        ("steps/control_role", [b"expert"] * 5),
    ):
        changed = {key: value for key, value in features.items() if key != name}
        if wrong is not None:
            changed[name] = wrong
        with pytest.raises(CorruptDataError, match=f"episode e00000: {name} should hold"):
            _rewrite(dataset, encode_example(changed)).windows("train", [Steps(0, 0, 1)])


def test_every_flipped_bit_is_found_when_a_record_is_first_touched(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "a" / "1.0.0", LENGTHS)
    (shard,) = folder.glob("*.tfrecord-*")
    good = shard.read_bytes()
    for position in np.random.default_rng(0).integers(0, 8 * len(good), 300):
        bad = bytearray(good)
        bad[position // 8] ^= 1 << position % 8
        shard.write_bytes(bad)
        with pytest.raises(CorruptDataError, match=shard.name):
            open_dataset(folder).windows("train", [Steps(n, 0, 1) for n in range(len(LENGTHS))])


def test_a_bit_that_flips_after_the_check_is_found_where_it_is_used(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "a" / "1.0.0", [400, 400], observation=64, action=8)
    dataset = open_dataset(folder)
    spans = [Steps(episode, first, first + 50) for episode in range(2) for first in range(0, 400, 50)]
    dataset.windows("train", spans)
    (shard,) = folder.glob("*.tfrecord-*")
    good = shard.read_bytes()
    state = good.rindex(np.array([1.0, 0.0], np.float32).tobytes())  # the second episode's first observation
    bad = bytearray(good)
    bad[state + 4 * 64 * 210] ^= 1
    shard.write_bytes(bad)
    hit = []
    for span in spans:
        try:
            dataset.windows("train", [span])
        except CorruptDataError as error:
            assert f"{shard.name}, byte " in error.detail
            assert "changed since they were checked" in error.detail
            hit.append(span)
    # Its own window, and those that share its block of 8 KiB; never another episode's.
    assert Steps(1, 200, 250) in hit
    assert all(span.episode == 1 and abs(span.first - 200) <= 50 + BLOCK_BYTES // (4 * 64) for span in hit)


def test_memory_is_bounded_and_changes_nothing(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "a" / "1.0.0", [50] * 40, observation=32)
    roomy, tight, none = (open_dataset(folder, cache_bytes=size) for size in (2**28, 20_000, 0))
    spans = [Steps(episode, 10, 40) for episode in (*range(40), 3, 39, 0)]
    for dataset in (roomy, tight, none):
        for _ in range(2):
            for span, window in zip(spans, dataset.windows("train", spans), strict=True):
                assert window.observation[:, 0].tolist() == [span.episode] * 30
                assert window.observation[:, 1].tolist() == list(range(10, 40))
    assert none.cached_bytes == 0
    assert 0 < tight.cached_bytes <= 20_000 < roomy.cached_bytes
    # The floats stay on the disk: an index takes a small part of what it stands for.
    assert roomy.cached_bytes < 40 * 4096


def test_a_dataset_can_be_handed_to_another_process(rich: Dataset) -> None:
    rich.windows("train", [Steps(0, 0, 1)])
    copy = pickle.loads(pickle.dumps(rich))
    assert copy.cached_bytes == 0
    _require_all_windows(copy)


def test_a_shard_that_vanishes_under_an_open_dataset_is_named(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "a" / "1.0.0", LENGTHS)
    dataset = open_dataset(folder)
    dataset.windows("train", [Steps(0, 0, 1)])
    (shard,) = folder.glob("*.tfrecord-*")
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(CorruptDataError, match=f"{shard.name} ends before byte"):
        dataset.windows("train", [Steps(1, 0, 1)])
    with pytest.raises(CorruptDataError, match=shard.name):
        dataset.windows("train", [Steps(0, 0, 1)])
    shard.write_bytes(b"")
    with pytest.raises(CorruptDataError, match=f"{shard.name}, byte 0, .* ends before the episode's last byte"):
        dataset.windows("train", [Steps(0, 0, 1)])
    shard.unlink()
    with pytest.raises(CorruptDataError, match=f"{shard.name}: No such file"):
        dataset.windows("train", [Steps(0, 0, 1)])
    with pytest.raises(NotFoundError, match="no split 'val'"):
        dataset.windows("val", [Steps(0, 0, 1)])
