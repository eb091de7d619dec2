"""The transport archive beside a dataset."""

import gzip
import hashlib
import threading
from pathlib import Path
from typing import BinaryIO

import orjson
import pytest

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import open_dataset

from .recording import record_many


def test_the_archive_unpacks_to_the_shards_and_says_what_it_is(tmp_path: Path) -> None:
    record_many(tmp_path / "in", [4] * 4)
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", compress=True)
    assert report.archive_dir == report.dataset_dir.with_name("1.0.0-archive")
    label = orjson.loads((report.archive_dir / "ARCHIVE.json").read_bytes())
    assert label["compression"] == "GZIP"
    assert "not a TFDS dataset" in label["kind"]
    manifest = open_dataset(report.dataset_dir).manifest
    assert [shard["file"] for shard in label["shards"]] == [f"{shard.file}.gz" for shard in manifest.shards]
    for entry, shard in zip(label["shards"], manifest.shards, strict=True):
        packed = (report.archive_dir / entry["file"]).read_bytes()
        assert (len(packed), hashlib.sha256(packed).hexdigest()) == (entry["size_bytes"], entry["sha256"])
        assert gzip.decompress(packed) == (report.dataset_dir / shard.file).read_bytes()


def test_a_reused_version_gets_its_archive_later_and_keeps_it(tmp_path: Path) -> None:
    record_many(tmp_path / "in", [4, 4])
    assert convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out").archive_dir is None
    later = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", compress=True)
    assert later.reused
    assert later.archive_dir is not None
    written = (later.archive_dir / "ARCHIVE.json").stat().st_mtime_ns
    convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", compress=True)
    assert (later.archive_dir / "ARCHIVE.json").stat().st_mtime_ns == written


def test_a_cancel_stops_the_archive_and_the_dataset_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_many(tmp_path / "in", [4, 4])
    plain = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out")
    began = threading.Event()

    def endless(source: BinaryIO) -> bytes:
        began.set()
        return b"more"

    def cancel(done: int, total: int) -> None:
        if began.is_set():
            raise KeyboardInterrupt

    # A shard that never ends: nothing but the cancel stops its compression.
    monkeypatch.setattr("brain_service.datasets.archive._read_block", endless)
    with pytest.raises(KeyboardInterrupt):
        convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", compress=True, progress=cancel)
    monkeypatch.undo()
    assert sorted(path.name for path in plain.dataset_dir.parent.iterdir()) == [".lock", ".sources.json", "1.0.0"]
    assert convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", compress=True).archive_dir is not None


def test_an_archive_is_not_taken_for_a_version(tmp_path: Path) -> None:
    record_many(tmp_path / "in", [4, 4])
    report = convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "out", compress=True)
    assert open_dataset(tmp_path / "out").path == report.dataset_dir
