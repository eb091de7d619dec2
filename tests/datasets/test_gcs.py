"""Datasets on a bucket. Simulated: the real fake-gcs-server binary on this machine, and the real gcsfs."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from gcsfs.core import GCSFileSystem
from hypothesis import given
from hypothesis import strategies as st

from brain_service.datasets.access import Steps
from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import open_dataset
from brain_service.datasets.formats import export_dataset
from brain_service.datasets.loader import Batch, SequenceLoader
from brain_service.datasets.storage import GcsFolder, LocalFolder, Range, merge_ranges, open_folder
from brain_service.datasets.stored import BLOCK_BYTES
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError, UnavailableError
from tests.fakes.gcs import FakeGcs, fake_gcs
from tests.fakes.proxy import Proxy

from .random_datasets import write_dataset
from .recording import record_many

LENGTHS = (5, 12, 1, 8, 3, 30, 17, 2)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeGcs]:
    """A server with the bucket `robots`."""
    with fake_gcs() as running:
        running.make_bucket("robots")
        yield running


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted dataset version on this machine."""
    root = tmp_path_factory.mktemp("gcs")
    record_many(root / "in", LENGTHS)
    return convert_directory_to_tfrecord(
        root / "in", root / "out", name="arm", val_fraction=0.0, shard_bytes=4096
    ).dataset_dir


@pytest.fixture(scope="module")
def place(server: FakeGcs, local: Path) -> str:
    """The same version on the bucket."""
    return server.upload(local, "robots", "datasets/arm/1.0.0")


def _loader(place: str | Path, cache_bytes: int = 2**26) -> SequenceLoader:
    dataset = open_dataset(place, cache_bytes=cache_bytes)
    return SequenceLoader(dataset, "train", batch_size=4, sequence_length=4, seed=1, mode="packed")


def _require_same(one: Batch, two: Batch) -> None:
    for field in fields(Batch):
        assert getattr(one, field.name).tobytes() == getattr(two, field.name).tobytes(), field.name


@pytest.mark.parametrize("cache_bytes", [2**26, 9000, 0])
def test_batches_are_those_of_the_same_files_on_disk(local: Path, place: str, cache_bytes: int) -> None:
    there, here = _loader(place, cache_bytes), _loader(local)
    for _ in range(2):
        for step in range(here.steps_per_epoch):
            _require_same(there.batch(step), here.batch(step))
    assert there.dataset.cached_bytes <= cache_bytes
    ahead = there.batches(3)
    for step, batch in zip(range(3, 6), ahead, strict=False):
        _require_same(batch, here.batch(step))
    ahead.close()


def test_version_name_and_root_open_the_newest(server: FakeGcs, local: Path) -> None:
    for version in ("1.9.0", "1.10.0"):
        server.upload(local, "robots", f"fleet/arm/{version}")
    for path in ("fleet", "fleet/arm", "fleet/arm/", "fleet/arm/1.10.0"):
        assert open_dataset(f"gs://robots/{path}").location == "gs://robots/fleet/arm/1.10.0"
    server.upload(local, "robots", "fleet/leg/1.0.0")
    with pytest.raises(InvalidError, match="several datasets, arm, leg"):
        open_dataset("gs://robots/fleet")


def test_whole_episodes_and_statistics_are_read(local: Path, place: str) -> None:
    there, here = open_dataset(place), open_dataset(local)
    assert there.statistics == here.statistics
    assert np.array_equal(there.vectors("train", 3).observation, here.vectors("train", 3).observation)
    with pytest.raises(InvalidError, match="no folder of this machine"):
        _ = there.path


def test_a_path_that_lost_a_slash_means_the_bucket(local: Path, place: str, tmp_path: Path) -> None:
    assert open_dataset(Path(place)).location == place
    report = export_dataset(Path(place), tmp_path / "mcap", "mcap")
    assert report.episodes == len(LENGTHS)
    assert open_dataset(place).metadata("train", 0) == open_dataset(local).metadata("train", 0)


@pytest.mark.parametrize("path", ["gs://robots/nothing", "gs://no-such-bucket/datasets/arm"])
def test_a_missing_bucket_or_folder_is_not_found(place: str, path: str) -> None:
    with pytest.raises(NotFoundError, match=f"no dataset at {path}; check the bucket"):
        open_dataset(path)
    with pytest.raises(NotFoundError, match=f"{path}/manifest.json does not exist"):
        open_folder(path).read("manifest.json")


def test_an_object_that_is_missing_cut_or_changed_is_named(server: FakeGcs, local: Path) -> None:
    place = server.upload(local, "robots", "damaged/arm/1.0.0")
    shards = sorted(path.name for path in local.glob("*.tfrecord-*"))
    dataset = open_dataset(place)
    content = bytearray((local / shards[0]).read_bytes())
    content[len(content) // 2] ^= 1
    server.put("robots", f"damaged/arm/1.0.0/{shards[0]}", bytes(content))
    everything = [Steps(episode, 0, 1) for episode in range(len(LENGTHS))]
    with pytest.raises(CorruptDataError, match=f"{place}/{shards[0]}: the .*record at byte .* fails"):
        dataset.windows("train", everything)
    server.put("robots", f"damaged/arm/1.0.0/{shards[0]}", bytes(content[:-1]))
    with pytest.raises(CorruptDataError, match=f"{shards[0]} has .* bytes, the manifest says"):
        open_dataset(place)
    server.delete("robots", f"damaged/arm/1.0.0/{shards[0]}")
    with pytest.raises(CorruptDataError, match=f"{shards[0]}.* is gone"):
        dataset.windows("train", everything)
    with pytest.raises(CorruptDataError, match=f"{place}/{shards[0]} is missing"):
        open_dataset(place)


def test_one_record_costs_its_own_bytes_and_neighbours_one_request(
    server: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_dataset(tmp_path / "wide" / "1.0.0", [1000] * 20, observation=128)
    place = server.upload(folder, "robots", "wide/1.0.0")
    dataset = open_dataset(place, cache_bytes=100_000)  # room for indices, not for the episodes themselves
    entries = dataset.entries("train")
    asked: list[int] = []
    real = GCSFileSystem._cat_file

    async def counted(self: GCSFileSystem, path: str, start: int, end: int, **how: object) -> bytes:
        data: bytes = await real(self, path, start=start, end=end, **how)
        assert len(data) == end - start
        asked.append(len(data))
        return data

    monkeypatch.setattr(GCSFileSystem, "_cat_file", counted)
    dataset.windows("train", [Steps(7, 0, 64)])
    assert asked == [entries[7].size_bytes]
    asked.clear()
    dataset.windows("train", [Steps(2, 0, 64), Steps(4, 0, 64), Steps(3, 0, 64)])
    assert asked == [sum(entries[episode].size_bytes for episode in (2, 3, 4))]
    asked.clear()
    dataset.windows("train", [Steps(3, 500, 564)])
    # 64 steps of 128 + 2 floats in whole blocks, where the episode has half a megabyte.
    assert 64 * 130 * 4 <= sum(asked) <= 64 * 130 * 4 + 4 * BLOCK_BYTES


def test_a_busy_service_is_asked_again(server: FakeGcs, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy(int(server.url.rsplit(":", 1)[1])).start()
    try:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{proxy.port}")
        dataset = open_dataset(place)
        proxy.busy = 2
        proxy.drop()
        assert len(dataset.windows("train", [Steps(0, 0, 5)])) == 1
        assert proxy.busy == 0, "the 503s were answered"
    finally:
        proxy.stop()


def test_without_gcsfs_the_error_names_the_extra(place: str) -> None:
    script = (
        "import sys; sys.modules['gcsfs'] = None\n"
        "from brain_service.datasets import open_dataset\n"
        "from brain_service.errors import ConfigError\n"
        "try: open_dataset('gs://robots/datasets/arm')\n"
        "except ConfigError as error: print(error.detail)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install 'continuon-brain[gcs]'" in done.stdout


@pytest.mark.long
def test_worker_processes_read_the_bucket_by_themselves(server: FakeGcs, local: Path, place: str) -> None:
    script = (
        "import sys, hashlib; from itertools import islice\n"
        "from tests.datasets.test_gcs import _loader\n"
        "if __name__ == '__main__':\n"
        "    batches = _loader(sys.argv[1]).batches(workers=2)\n"
        "    made = b''.join(batch.observation.tobytes() for batch in islice(batches, 4))\n"
        "    batches.close(); print(hashlib.sha256(made).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, place],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        env=os.environ | server.environment(),
    )
    expected = b"".join(_loader(local).batch(step).observation.tobytes() for step in range(4))
    assert done.stdout.split() == [hashlib.sha256(expected).hexdigest()]


_ranges = st.lists(
    st.builds(Range, st.sampled_from("ab"), st.integers(0, 5_000_000), st.integers(1, 100_000)), max_size=20
)


@given(_ranges)
def test_merged_ranges_cover_what_was_asked_for_and_are_apart(ranges: list[Range]) -> None:
    merged = merge_ranges(ranges)
    for part in ranges:
        holders = [
            whole
            for whole in merged
            if whole.file == part.file
            and whole.start_byte <= part.start_byte
            and part.start_byte + part.size_bytes <= whole.start_byte + whole.size_bytes
        ]
        assert len(holders) == 1
    for one, two in pairwise(merged):
        assert one.file < two.file or one.start_byte + one.size_bytes < two.start_byte
    assert all(whole.size_bytes <= 8 * 1024**2 for whole in merged)


def test_a_place_is_local_or_a_bucket(tmp_path: Path) -> None:
    assert open_folder("gs://robots/a/") == GcsFolder("gs://robots/a")
    assert open_folder(tmp_path) == LocalFolder(tmp_path)
    with pytest.raises(InvalidError, match="names no bucket"):
        open_folder("gs://")
    with pytest.raises(InvalidError, match="local paths or gs://"):
        open_folder("s3://robots/a")
    assert list(islice(LocalFolder(tmp_path / "none").sizes(), 1)) == []
    with pytest.raises(NotFoundError, match="does not exist"):
        LocalFolder(tmp_path).read("manifest.json")
    with pytest.raises(UnavailableError):
        LocalFolder(tmp_path.parent).read(tmp_path.name)
