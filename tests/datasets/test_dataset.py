"""Opening and reading a dataset, whole and damaged."""

import os
import shutil
from pathlib import Path

import numpy as np
import orjson
import pytest

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import open_dataset
from brain_service.datasets.example import decode_example, encode_example
from brain_service.datasets.storage import LocalFolder
from brain_service.datasets.tfrecord import frame, read_records
from brain_service.errors import BrainError, CorruptDataError, InvalidError, NotFoundError
from brain_service.spec import EpisodeSpec, Feature, to_vector

from .recording import record, record_many
from .samples import PERIOD_NS, RICH_SPEC, make_episode

LENGTHS = [3, 5, 4, 6]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset version of four short episodes."""
    record_many(tmp_path / "in", LENGTHS, spec=RICH_SPEC)
    return convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", val_fraction=0.0).dataset_dir


def test_version_name_and_root_open_the_newest(folder: Path) -> None:
    record(folder.parents[2] / "in", [make_episode("later", spec=RICH_SPEC)])
    newest = convert_directory_to_tfrecord(folder.parents[2] / "in", folder.parents[1]).dataset_dir
    assert open_dataset(folder).path == folder
    assert open_dataset(str(folder.parent)).path == newest
    assert open_dataset(folder.parents[1]).path == newest


def test_a_root_of_several_datasets_asks_which(folder: Path) -> None:
    convert_directory_to_tfrecord(folder.parents[2] / "in", folder.parents[1], name="other")
    with pytest.raises(InvalidError, match="several datasets, episodes, other"):
        open_dataset(folder.parents[1])


@pytest.mark.parametrize("place", ["missing", "."])
def test_no_dataset_says_how_to_make_one(tmp_path: Path, place: str) -> None:
    with pytest.raises(NotFoundError, match="POST /convert"):
        open_dataset(tmp_path / place)


def test_the_index_tells_lengths_roles_and_period(folder: Path) -> None:
    dataset = open_dataset(folder)
    assert dataset.splits == ("train",)
    assert dataset.lengths("train").tolist() == LENGTHS
    assert dataset.control_period_s == pytest.approx(PERIOD_NS / 1e9)
    assert [entry.roles for entry in dataset.entries("train")] == [{"expert": length} for length in LENGTHS]
    assert dataset.statistics.num_transitions == sum(LENGTHS)


def test_an_unknown_split_or_episode_is_named(folder: Path) -> None:
    dataset = open_dataset(folder)
    with pytest.raises(NotFoundError, match="no split 'val'; it has train; record at least two episodes"):
        dataset.lengths("val")
    with pytest.raises(NotFoundError, match="has episodes 0 to 3, not 4"):
        dataset.read("train", 4)


def test_vectors_are_those_of_the_spec(folder: Path) -> None:
    episode = make_episode("e02", 4, spec=RICH_SPEC)
    vectors = open_dataset(folder).vectors("train", 2)
    for t in range(4):
        for found, columns, spec in (
            (vectors.observation, episode.observation, RICH_SPEC.observation),
            (vectors.action, episode.action, RICH_SPEC.action),
        ):
            values = {
                path: np.asarray(column[t]) for path, column in columns.items() if not isinstance(column, list)
            }
            assert np.array_equal(found[t], to_vector(values, spec))
    assert np.array_equal(vectors.reward, episode.reward)
    assert vectors.is_first.tolist() == [True, False, False, False]
    assert vectors.is_terminal.tolist() == [False, False, False, True]
    assert vectors.control_role == ("expert",) * 4


def test_a_single_action_has_its_own_shape_again(tmp_path: Path) -> None:
    spec = EpisodeSpec({"state": Feature("float32")}, {"motor/throttle": Feature("float32")})
    episode = make_episode(spec=spec)
    record(tmp_path / "in", [episode])
    dataset = open_dataset(convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out").dataset_dir)
    assert np.array_equal(dataset.read("train", 0)["action/motor/throttle"], episode.action["motor/throttle"])
    assert dataset.vectors("train", 0).action.shape == (5, 1)


def test_an_observation_of_text_alone_has_no_vector(tmp_path: Path) -> None:
    spec = EpisodeSpec({"note": Feature("text")}, {"command": Feature("float32", (2,))})
    record(tmp_path / "in", [make_episode(spec=spec)])
    dataset = open_dataset(convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out").dataset_dir)
    assert dataset.vectors("train", 0).observation.shape == (5, 0)
    assert len(dataset.statistics.vector("observation", "mean")) == 0


def _read_all(folder: Path) -> None:
    dataset = open_dataset(folder)
    for index in range(len(dataset.entries("train"))):
        dataset.read("train", index)


def test_every_flipped_bit_of_a_shard_is_found(folder: Path) -> None:
    (shard,) = folder.glob("*.tfrecord-*")
    good = shard.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, 8 * len(good), 200):
        bad = bytearray(good)
        bad[position // 8] ^= 1 << position % 8
        shard.write_bytes(bad)
        with pytest.raises(CorruptDataError, match=shard.name):
            _read_all(folder)


def test_a_missing_or_cut_shard_is_found_on_opening(folder: Path) -> None:
    (shard,) = folder.glob("*.tfrecord-*")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CorruptDataError, match=f"{shard.name} has .* bytes, the manifest says"):
        open_dataset(folder)
    shard.unlink()
    with pytest.raises(CorruptDataError, match=f"{shard.name} is missing; restore it or convert") as caught:
        open_dataset(folder)
    assert caught.value.members["file"] == shard.name


def test_a_shard_that_vanishes_or_shrinks_under_an_open_dataset_is_named(folder: Path) -> None:
    dataset = open_dataset(folder)
    (shard,) = folder.glob("*.tfrecord-*")
    shard.write_bytes(b"")
    with pytest.raises(CorruptDataError, match=f"{shard.name} ends before byte"):
        dataset.read("train", 1)
    shard.unlink()
    with pytest.raises(CorruptDataError, match=f"{shard.name}: No such file"):
        dataset.read("train", 1)


def test_a_damaged_manifest_is_named(folder: Path) -> None:
    manifest = folder / "manifest.json"
    good = orjson.loads(manifest.read_bytes())
    good["splits"]["train"][0]["offset_bytes"] = 10**9
    manifest.write_bytes(orjson.dumps(good))
    with pytest.raises(CorruptDataError, match="outside the shards"):
        open_dataset(folder)
    for broken in (b"", b"{}", b"[1]", b'{"schema":"other/9"}'):
        manifest.write_bytes(broken)
        with pytest.raises(CorruptDataError, match=r"manifest\.json"):
            open_dataset(folder)


@pytest.mark.parametrize("content", [b'{"name": "\xe4"}', b"[" * 100_000], ids=["no UTF-8", "deep"])
def test_what_is_no_json_at_all_is_named(folder: Path, content: bytes) -> None:
    for file in ("manifest.json", "statistics.json"):
        path = folder / file
        good = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(CorruptDataError, match=file):
            _ = open_dataset(folder).statistics
        path.write_bytes(good)


def test_another_schema_is_refused(folder: Path) -> None:
    manifest = folder / "manifest.json"
    document = orjson.loads(manifest.read_bytes()) | {"schema": "continuon-brain/dataset/9"}
    manifest.write_bytes(orjson.dumps(document))
    with pytest.raises(CorruptDataError, match="dataset/9"):
        open_dataset(folder)


def test_a_copied_dataset_opens_anywhere(folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert open_dataset(moved).lengths("train").tolist() == LENGTHS


@pytest.mark.parametrize(
    ("field", "value"),
    [("length", 0), ("length", -4), ("offset_bytes", -1), ("size_bytes", -1), ("size_bytes", 15)],
)
def test_an_entry_that_cannot_be_is_named_on_opening(folder: Path, field: str, value: int) -> None:
    path = folder / "manifest.json"
    manifest = orjson.loads(path.read_bytes())
    manifest["splits"]["train"][1][field] = value
    path.write_bytes(orjson.dumps(manifest))
    with pytest.raises(CorruptDataError, match=r"manifest\.json: episode e01 .* cannot be"):
        open_dataset(folder)


def test_an_index_of_other_lengths_is_found_on_reading(folder: Path) -> None:
    manifest = folder / "manifest.json"
    document = orjson.loads(manifest.read_bytes())
    document["splits"]["train"][0]["length"] += 1
    manifest.write_bytes(orjson.dumps(document))
    with pytest.raises(BrainError, match=r"episode e00: steps/.* should hold"):
        open_dataset(folder).read("train", 0)


def test_a_file_that_goes_while_its_folder_is_listed_is_passed_over(folder: Path, tmp_path: Path) -> None:
    class Busy(LocalFolder):
        def _entries(self) -> list["os.DirEntry[str]"]:
            found = super()._entries()
            # As a converter does beside the versions, between the listing and the look at each file.
            (self.path / "x.tmp").unlink(missing_ok=True)
            return found

    copy = shutil.copytree(folder, tmp_path / "copy")
    expected = LocalFolder(copy).sizes()
    (copy / "x.tmp").write_bytes(b"half")
    assert Busy(copy).sizes() == expected


def test_texts_that_are_none_are_named(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    manifest = orjson.loads((copy / "manifest.json").read_bytes())
    entry = manifest["splits"]["train"][0]
    shard = copy / entry["shard"]
    values = decode_example(next(read_records(shard)), "")
    values["steps/language_instruction"] = [b"\xff"] * entry["length"]
    record = frame(encode_example(values))
    shard.write_bytes(record)
    entry["size_bytes"] = len(record)
    manifest["splits"] = {"train": [entry]}
    manifest["shards"] = [s | {"size_bytes": len(record)} for s in manifest["shards"] if s["file"] == shard.name]
    (copy / "manifest.json").write_bytes(orjson.dumps(manifest))
    with pytest.raises(CorruptDataError, match="steps/language_instruction is no UTF-8 text"):
        open_dataset(copy).read("train", 0)
