"""The data of a run is the data that was frozen: held against the manifest once, later against the storage."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from brain_service.datasets.loader import open_dataset
from brain_service.datasets.places import LocalPlace, open_place
from brain_service.datasets.storage import GcsFolder, Range
from brain_service.errors import CorruptDataError
from cloud_trainer.distributed import Hosts
from cloud_trainer.frozen import FROZEN_FILE, check_frozen
from tests.fakes.gcs import FakeGcs, fake_gcs
from tests.training.tasks import make_dataset


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("task"), count=4, length=6)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeGcs]:
    with fake_gcs() as running:
        running.make_bucket("robots")
        yield running


def changed(data: bytes) -> bytes:
    """The same size, other bytes."""
    return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]


def shard_of(folder: Path) -> Path:
    return next(folder.glob("*.tfrecord*"))


def test_a_shard_that_was_changed_after_freezing_is_named(whole: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(whole, tmp_path / "1.0.0"))
    output = LocalPlace(tmp_path / "run")
    check_frozen(open_dataset(copied), output, Hosts())
    shard = shard_of(copied)
    shard.write_bytes(changed(shard.read_bytes()))
    with pytest.raises(CorruptDataError, match=f"{shard.name}: it was changed after"):
        check_frozen(open_dataset(copied), output, Hosts())


def test_on_a_bucket_a_later_start_reads_nothing_unless_the_service_says_otherwise(
    whole: Path, server: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = server.upload(whole, "robots", "datasets/toy/1.0.0")
    output = open_place("gs://robots/run")
    check_frozen(open_dataset(place), output, Hosts())
    assert output.read(FROZEN_FILE)

    again = open_dataset(place)
    reads: list[object] = []
    original = GcsFolder.read_ranges

    def read_ranges(self: GcsFolder, ranges: Sequence[Range]) -> list[bytes]:
        reads.append(ranges)
        return original(self, ranges)

    monkeypatch.setattr(GcsFolder, "read_ranges", read_ranges)
    check_frozen(again, output, Hosts())
    assert reads == []

    shard = shard_of(whole)
    server.put("robots", f"datasets/toy/1.0.0/{shard.name}", changed(shard.read_bytes()))
    with pytest.raises(CorruptDataError, match=rf"gs://.*{shard.name}: it was changed after"):
        check_frozen(open_dataset(place), output, Hosts())
    assert len(reads) == 1, "only the shard that differs is read"
