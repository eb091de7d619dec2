"""A dataset that grows by small conversions is the one that a single conversion would have made."""

import errno
import itertools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_service.datasets.convert import ConvertReport, convert_directory_to_tfrecord
from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.datasets.tfrecord import read_records
from brain_service.episodes.reader import read_episodes
from brain_service.errors import InvalidError

from .logs import write_log

FILES = [f"{name}.jsonl" for name in "abcdef"]

# A file's content: which id, which values, how many floats of state, whether it is damaged. None: the file goes.
_contents = st.one_of(
    st.none(),
    st.tuples(st.sampled_from("abcdxy"), st.integers(0, 2), st.sampled_from([3, 3, 3, 4]), st.booleans()),
)
_changes = st.lists(st.tuples(st.sampled_from(FILES), _contents), min_size=1, max_size=4)
_rounds = st.lists(st.tuples(_changes, st.sampled_from([0.0, 0.3]), st.sampled_from([1, 400, 10**6])), max_size=6)


def _apply(folder: Path, changes: list[tuple[str, Any]]) -> None:
    for file, content in changes:
        (folder / file).unlink(missing_ok=True)
        if content is not None:
            episode_id, seed, state, damaged = content
            path = write_log(folder / file, episode_id, 1 + seed, seed=seed, state=state)
            if damaged and seed == 2:
                path.write_bytes(path.read_bytes().replace(b"reach", b"reech"))


def _facts(dataset: Dataset, report: ConvertReport) -> dict[str, Any]:
    """What must not depend on how a dataset came about; each record is read and checked on the way."""
    found = {}
    for split, entries in dataset.manifest.splits.items():
        for entry in entries:
            found[entry.episode_id] = (split, entry.source, entry.place, entry.length, entry.sha256, entry.roles)
    for shard in dataset.manifest.shards:
        assert sum(1 for _ in read_records(dataset.path / shard.file)) == shard.episodes
    return {
        "episodes": found,
        "statistics": dataset.statistics,
        "period": dataset.control_period_s,
        "spec": dataset.spec,
        "left out": [(item["file"], item["reason"]) for item in report.quarantined],
        "sources": dataset.manifest.sources,
        "digest": dataset.manifest.source_digest,
    }


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(_rounds)
def test_any_sequence_of_conversions_ends_where_one_conversion_does(rounds: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "in"
        folder.mkdir()
        for number, (changes, val_fraction, shard_bytes) in enumerate(rounds):
            _apply(folder, changes)
            options = {"val_fraction": val_fraction, "shard_bytes": shard_bytes, "drop_missing": True}
            try:
                grown = convert_directory_to_tfrecord(folder, Path(name) / "grown", **options)
            except InvalidError as error:
                with pytest.raises(InvalidError) as caught:
                    convert_directory_to_tfrecord(folder, Path(name) / f"anew-{number}", **options)
                assert caught.value.detail == error.detail
                continue
            anew = convert_directory_to_tfrecord(folder, Path(name) / f"anew-{number}", **options)
            assert _facts(open_dataset(grown.dataset_dir), grown) == _facts(open_dataset(anew.dataset_dir), anew)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from(FILES), max_size=3), st.lists(st.sampled_from(FILES), max_size=3)),
        min_size=1,
        max_size=6,
    )
)
def test_what_was_deleted_after_its_conversion_stays(rounds: list[tuple[list[str], list[str]]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, everything = Path(name) / "in", Path(name) / "all"
        folder.mkdir()
        write_log(folder / "first.jsonl")
        for number, (written, deleted) in enumerate(rounds):
            for file in written:
                write_log(folder / file, steps=2 + number, seed=number)
            shutil.copytree(folder, everything, dirs_exist_ok=True)
            grown = convert_directory_to_tfrecord(folder, Path(name) / "grown")
            for file in deleted:
                (folder / file).unlink(missing_ok=True)
        anew = convert_directory_to_tfrecord(everything, Path(name) / "anew")
        assert _facts(open_dataset(grown.dataset_dir), grown) == _facts(open_dataset(anew.dataset_dir), anew)


def test_only_what_is_new_or_changed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def watched(path: Path) -> Any:
        read.append(path.name)
        return read_episodes(path)

    monkeypatch.setattr("brain_service.datasets.encoding.read_episodes", watched)
    for n in range(6):
        write_log(tmp_path / "in" / f"e{n}.jsonl", seed=n)
    convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    read.clear()
    write_log(tmp_path / "in" / "e7.jsonl", seed=7)
    write_log(tmp_path / "in" / "e2.jsonl", seed=99)
    (tmp_path / "in" / "e4.jsonl").unlink()
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert read == ["e2.jsonl", "e7.jsonl"]
    assert (report.new, report.changed, report.kept) == (["e7.jsonl"], ["e2.jsonl"], ["e4.jsonl"])
    assert report.unchanged == ["e0.jsonl", "e1.jsonl", "e3.jsonl", "e5.jsonl"]
    assert report.episodes == 7
    read.clear()
    dropped = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", drop_missing=True)
    assert (read, dropped.dropped, dropped.episodes) == ([], ["e4.jsonl"], 6)
    # What has left stays away: nothing is converted again.
    assert convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out").reused


def test_an_unchanged_file_is_not_hashed_again_and_a_changed_one_is(tmp_path: Path) -> None:
    long_ago = 1_600_000_000
    paths = [write_log(tmp_path / "in" / f"e{n}.jsonl", seed=n) for n in range(3)]
    convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    # Rewritten in place with its old time: the change of the inode's own time gives it away.
    stat = paths[1].stat()
    paths[1].write_bytes(paths[1].read_bytes().replace(b"reach", b"roach"))
    os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert report.changed == ["e1.jsonl"]
    assert report.quarantined[0]["file"] == "e1.jsonl"
    os.utime(paths[0], (long_ago, long_ago))
    assert convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out").reused


@pytest.mark.slow
def test_many_small_conversions_leave_few_shards_and_copy_little(tmp_path: Path) -> None:
    written, inodes = 0, set[int]()
    for n in range(120):
        write_log(tmp_path / "in" / f"e{n:03d}.jsonl", seed=n)
        report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", val_fraction=0.0)
        for path in report.dataset_dir.glob("*.tfrecord-*"):
            if path.stat().st_ino not in inodes:
                inodes.add(path.stat().st_ino)
                written += path.stat().st_size
        assert report.shards <= 8, report.version
    final = sum(shard.size_bytes for shard in open_dataset(report.dataset_dir).manifest.shards)
    assert report.episodes == 120
    # Each record is written as often as its shard grows by half.
    assert written < 9 * final
    assert report.shared_shards >= report.shards - 1


def test_shards_are_shared_with_the_version_before_which_stays_as_it_was(tmp_path: Path) -> None:
    for n in range(8):
        write_log(tmp_path / "in" / f"e{n}.jsonl", seed=n, steps=40)
    first = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", shard_bytes=9000, compress=True)
    before = {path.name: path.read_bytes() for path in first.dataset_dir.iterdir()}
    write_log(tmp_path / "in" / "new.jsonl", seed=99)
    second = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", shard_bytes=9000, compress=True)
    assert {path.name: path.read_bytes() for path in first.dataset_dir.iterdir()} == before
    assert second.shared_shards >= 2
    for older, newer in ((first.dataset_dir, second.dataset_dir), (first.archive_dir, second.archive_dir)):
        assert older is not None and newer is not None
        names = [path.name for path in older.glob("*.tfrecord-*")]
        shared = [name for name in names if (newer / name).samefile(older / name)]
        assert len(shared) == second.shared_shards


@pytest.mark.parametrize("code", [errno.EPERM, errno.EMLINK, errno.EXDEV])
def test_where_the_file_system_has_no_links_shards_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    for n in range(4):
        write_log(tmp_path / "in" / f"e{n}.jsonl", seed=n, steps=20)
    convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", shard_bytes=5000)
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    write_log(tmp_path / "in" / "new.jsonl", seed=9)
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", shard_bytes=5000)
    assert report.shared_shards >= 1
    assert all(path.stat().st_nlink == 1 for path in report.dataset_dir.iterdir())
    assert len(list(itertools.chain(*open_dataset(report.dataset_dir).manifest.splits.values()))) == 5


def test_a_record_that_rotted_in_the_version_before_is_read_from_its_source_again(tmp_path: Path) -> None:
    for n in range(4):
        write_log(tmp_path / "in" / f"e{n}.jsonl", seed=n)
    first = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", val_fraction=0.0)
    shard = first.dataset_dir / "episodes-train.tfrecord-00000"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    write_log(tmp_path / "in" / "new.jsonl", seed=9)
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", val_fraction=0.0)
    assert report.episodes == 5
    assert report.passed_over[0]["version"] == "1.0.0"
    dataset = open_dataset(report.dataset_dir)
    assert [dataset.read("train", n)["reward"] is not None for n in range(5)] == [True] * 5


def test_an_unknown_shard_is_set_aside_and_told(tmp_path: Path) -> None:
    write_log(tmp_path / "in" / "a.jsonl")
    first = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    for content in (b"one", b"two"):
        stray = first.dataset_dir / "episodes-train.tfrecord-00001"
        stray.write_bytes(content)
        report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
        assert report.reused
        assert not stray.exists()
        (moved,) = report.orphans
        assert Path(moved).parent == tmp_path / "out" / "episodes" / "orphans" / "1.0.0"
        assert Path(moved).read_bytes() == content


def test_another_profile_builds_on_its_own_versions(tmp_path: Path) -> None:
    write_log(tmp_path / "in" / "a.jsonl")
    convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", profile="rlds")
    write_log(tmp_path / "in" / "b.jsonl", seed=1)
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    assert (report.version, report.profile, report.unchanged) == ("1.0.2", "oxe", ["a.jsonl"])
