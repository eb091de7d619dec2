"""Dataset versions on their way up: what of a version goes, what is refused, and what retention learns of it."""

import contextlib
import shutil
from pathlib import Path

import pytest

from brain_service.cloud.freeze import freeze_dataset
from brain_service.cloud.patience import RetryPolicy
from brain_service.cloud.upload_queue import OfflineError, UploadQueue
from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.datasets.dataset import open_dataset
from brain_service.datasets.manifest import read_manifest
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import CorruptDataError, NotFoundError
from brain_service.settings import CaptureSettings, CloudSettings
from tests.datasets.recording import record_many
from tests.fakes.gcs_faults import Fault, GcsFaults

QUICK = RetryPolicy(tries=4, base_s=0.001, cap_s=0.01)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes, and a version with several shards of them: `episodes/` and `datasets/arm/1.0.0/`."""
    root = tmp_path_factory.mktemp("made")
    record_many(root / "episodes", (40, 60, 30))
    convert_directory_to_tfrecord(
        root / "episodes", root / "datasets", name="arm", val_fraction=0.0, shard_bytes=4096
    )
    return root


@pytest.fixture
def version(made: Path, tmp_path: Path) -> Path:
    """A copy of the version that a test may damage."""
    return Path(shutil.copytree(made / "datasets" / "arm" / "1.0.0", tmp_path / "arm" / "1.0.0"))


def test_a_version_on_the_bucket_is_read_as_the_one_on_disk(
    gcs: GcsFaults, bucket: str, version: Path, tmp_path: Path, cloud: CloudSettings
) -> None:
    (version / "arm-train.tfrecord-00099").write_bytes(b"an orphan")
    with UploadQueue(tmp_path / "q.db", cloud, policy=QUICK) as queue:
        upload = queue.add_dataset(version, f"gs://{bucket}/data")
        assert queue.view(upload).location == f"gs://{bucket}/data/arm/1.0.0"
        queue.work(upload)
    here = {f"data/arm/1.0.0/{path.name}": path.read_bytes() for path in version.iterdir()}
    del here["data/arm/1.0.0/arm-train.tfrecord-00099"]
    assert gcs.objects(bucket) == here
    assert gcs.commits[-1] == "data/arm/1.0.0/manifest.json"
    there = open_dataset(f"gs://{bucket}/data")
    assert there.metadata("train", 1) == open_dataset(version).metadata("train", 1)
    assert there.statistics == open_dataset(version).statistics


def test_a_version_that_is_not_what_its_manifest_says_is_not_queued(version: Path, tmp_path: Path) -> None:
    shard = version / read_manifest(version).shards[0].file
    data = shard.read_bytes()
    with UploadQueue(tmp_path / "q.db", CloudSettings()) as queue:
        shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(CorruptDataError, match=f"{shard}: its SHA-256 is not the manifest's"):
            queue.add_dataset(version, "gs://robots/data")
        shard.write_bytes(data[:-1])
        with pytest.raises(CorruptDataError, match="the manifest says"):
            queue.add_dataset(version, "gs://robots/data")
        shard.unlink()
        with pytest.raises(CorruptDataError, match="is missing"):
            queue.add_dataset(version, "gs://robots/data")
        (version / "manifest.json").write_bytes(b"{")
        with pytest.raises(CorruptDataError, match=r"manifest\.json"):
            queue.add_dataset(version, "gs://robots/data")
        with pytest.raises(NotFoundError, match="brain datasets ls"):
            queue.add_dataset(tmp_path / "none", "gs://robots/data")
        assert queue.list() == ()


def test_a_half_uploaded_version_is_a_clear_error_to_whoever_reads_it(
    gcs: GcsFaults, bucket: str, version: Path, tmp_path: Path, cloud: CloudSettings
) -> None:
    with UploadQueue(tmp_path / "q.db", cloud, policy=QUICK) as queue:
        upload = queue.add_dataset(version, f"gs://{bucket}/data")
        gcs.plan += [Fault("drop", "insert", skip=1), *[Fault("drop", "insert")] * 6]
        with pytest.raises(OfflineError):
            queue.work(upload)
        assert len(gcs.commits) == 1
        with pytest.raises(CorruptDataError, match=r"1\.0\.0/manifest\.json does not exist"):
            open_dataset(f"gs://{bucket}/data")
    # Somebody else's copy, which put the manifest first.
    gcs.server.put(bucket, "data/arm/1.0.0/manifest.json", (version / "manifest.json").read_bytes())
    with pytest.raises(CorruptDataError, match="is missing") as raised:
        open_dataset(f"gs://{bucket}/data")
    assert f"gs://{bucket}/data/arm/1.0.0/" in raised.value.detail


def test_retention_may_delete_an_episode_once_its_version_is_whole_on_the_bucket(
    gcs: GcsFaults, bucket: str, made: Path, tmp_path: Path, cloud: CloudSettings
) -> None:
    shutil.copytree(made / "episodes", tmp_path / "episodes")
    database = tmp_path / "brain.db"

    def uploaded() -> list[bool]:
        # Of the daemon, whose store is open all the while; the plan looks what is new.
        store.retention_plan()
        return [bool(store.get(f"e{number:02d}").get("uploaded")) for number in range(3)]

    store = EpisodeStore(
        tmp_path / "episodes", CaptureSettings(), database=database, datasets_dir=made / "datasets"
    )
    with contextlib.closing(store), UploadQueue(database, cloud, policy=QUICK) as queue:
        upload = queue.add_dataset(made / "datasets" / "arm" / "1.0.0", f"gs://{bucket}/data")
        assert uploaded() == [False] * 3
        gcs.plan += [Fault("drop", "insert", skip=3), *[Fault("drop", "insert")] * 6]
        with pytest.raises(OfflineError):
            queue.work(upload)
        assert uploaded() == [False] * 3
        gcs.plan.clear()
        queue.work(upload)
        assert uploaded() == [True] * 3
        store.delete("e01")
        assert sorted(item["episode_id"] for item in store.list(10, None)[0]) == ["e00", "e02"]


def test_only_logs_that_the_version_took_episodes_from_count(version: Path) -> None:
    frozen = freeze_dataset(version)
    manifest = read_manifest(version)
    assert set(frozen.logs) == {source.sha256 for source in manifest.sources}
    assert frozen.files[-1].file == "manifest.json"
    promised = {shard.file: shard.sha256 for shard in manifest.shards}
    assert {item.file: item.sha256 for item in frozen.files if item.file in promised} == promised
