"""The upload queue over real HTTP. Simulated: fake-gcs-server behind the proxy."""

import hashlib
import json
from datetime import datetime
from pathlib import Path

import pytest

from brain_service.cloud.upload_queue import OfflineError, UploadQueue
from brain_service.errors import (
    CancelledJobError,
    ConflictError,
    CorruptDataError,
    InvalidError,
    NotFoundError,
)
from brain_service.settings import CloudSettings
from tests.fakes.gcs_faults import Fault, GcsFaults

from .uploads import CHUNK, FILES, LARGE, QUICK, write


def test_every_file_is_there_with_its_bytes_and_the_manifest_came_last(
    gcs: GcsFaults, bucket: str, folder: Path, queue: UploadQueue
) -> None:
    seen: list[tuple[int, int, str]] = []
    upload = queue.add_folder(folder, f"gs://{bucket}/p/q")
    report = queue.work(upload, lambda *told: seen.append(told))
    assert gcs.objects(bucket) == {f"p/q/{name}": data for name, data in FILES.items()}
    assert gcs.commits[-1] == "p/q/manifest.json"
    total = sum(map(len, FILES.values()))
    assert (report.sent, report.skipped, report.sent_bytes, report.size_bytes) == (5, 0, total, total)
    assert seen[-1][:2] == (total, total)
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    stored = gcs.metadata(bucket, "p/q/a/shard-0")
    assert stored["metadata"] == {"sha256": hashlib.sha256(LARGE).hexdigest()}
    view = queue.view(upload)
    assert (view.state, view.done_files, view.done_bytes, view.location) == (
        "done",
        5,
        total,
        f"gs://{bucket}/p/q",
    )
    assert json.loads(json.dumps(view.to_json()))["error"] is None


def test_adding_twice_is_one_upload_and_working_twice_sends_nothing(
    gcs: GcsFaults, bucket: str, folder: Path, queue: UploadQueue
) -> None:
    upload = queue.add_folder(folder, f"gs://{bucket}/p")
    assert queue.add_folder(folder, f"gs://{bucket}/p/") == upload
    assert queue.add_folder(folder, f"gs://{bucket}/other") != upload
    queue.work(upload)
    gcs.reset()
    assert queue.work(queue.add_folder(folder, f"gs://{bucket}/p")).sent == 0
    assert gcs.log == []
    assert len(queue.list()) == 2


def test_a_queue_that_lost_its_memory_finds_its_objects_there(
    gcs: GcsFaults, bucket: str, folder: Path, queue: UploadQueue, tmp_path: Path, cloud: CloudSettings
) -> None:
    queue.work(queue.add_folder(folder, f"gs://{bucket}/p"))
    gcs.reset()
    with UploadQueue(tmp_path / "new.db", cloud, policy=QUICK) as fresh:
        report = fresh.work(fresh.add_folder(folder, f"gs://{bucket}/p"))
    assert (report.sent, report.skipped) == (0, 5)
    assert gcs.commits == []


@pytest.mark.parametrize("name", ["small", "a/shard-0"])
def test_another_content_under_the_name_is_a_conflict_and_stays(
    gcs: GcsFaults, bucket: str, folder: Path, queue: UploadQueue, name: str
) -> None:
    gcs.server.put(bucket, f"p/{name}", b"somebody else's")
    upload = queue.add_folder(folder, f"gs://{bucket}/p")
    with pytest.raises(
        ConflictError, match=f"gs://{bucket}/p/{name} is there with another content .* nothing was"
    ):
        queue.work(upload)
    assert gcs.objects(bucket)[f"p/{name}"] == b"somebody else's"
    assert "p/manifest.json" not in gcs.objects(bucket)
    view = queue.view(upload)
    assert view.state == "failed"
    assert view.error is not None
    assert view.error["status"] == 409
    gcs.server.delete(bucket, f"p/{name}")
    queue.work(upload)
    assert queue.view(upload).state == "done"
    assert queue.view(upload).error is None


def test_a_missing_bucket_is_named(folder: Path, queue: UploadQueue, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"gs://no-such-bucket/p.*check cloud\.bucket"):
        queue.work(queue.add_folder(folder, "gs://no-such-bucket/p"))
    alone = write(tmp_path / "alone", {"shard": LARGE})
    with pytest.raises(NotFoundError, match="no-such-bucket"):
        queue.work(queue.add_folder(alone, "gs://no-such-bucket/p"))


@pytest.mark.parametrize("name", ["small", "a/shard-0"])
@pytest.mark.parametrize("change", ["byte", "shorter", "longer", "gone"])
def test_a_file_that_changed_after_it_was_queued_never_becomes_an_object(
    gcs: GcsFaults, bucket: str, folder: Path, queue: UploadQueue, name: str, change: str
) -> None:
    upload = queue.add_folder(folder, f"gs://{bucket}/p")
    path = folder / name
    data = path.read_bytes()
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes({"byte": data[:-1] + b"?", "shorter": data[:-1], "longer": data + b"?"}[change])
    with pytest.raises(CorruptDataError, match=f"{path}.*queued"):
        queue.work(upload)
    assert f"p/{name}" not in gcs.objects(bucket)
    assert "p/manifest.json" not in gcs.objects(bucket)
    assert queue.view(upload).state == "failed"
    path.write_bytes(data)
    queue.work(upload)
    assert gcs.objects(bucket) == {f"p/{file}": content for file, content in FILES.items()}


def test_a_request_to_stop_is_seen_between_chunks_and_the_rest_goes_on(
    gcs: GcsFaults, bucket: str, folder: Path, queue: UploadQueue
) -> None:
    upload = queue.add_folder(folder, f"gs://{bucket}/p")
    with pytest.raises(CancelledJobError):
        queue.work(upload, should_stop=lambda: gcs.log.count("send") >= 2)
    assert queue.view(upload).state == "waiting"
    before = gcs.body_bytes
    queue.work(upload)
    assert gcs.objects(bucket) == {f"p/{name}": data for name, data in FILES.items()}
    assert before > CHUNK
    assert gcs.body_bytes < sum(map(len, FILES.values())) + 4096, "nothing went twice"


def test_quiet_hours_stop_between_chunks_and_say_when_they_end(
    gcs: GcsFaults, bucket: str, folder: Path, tmp_path: Path, cloud: CloudSettings
) -> None:
    def now() -> datetime:
        late = gcs.log.count("send") >= 2
        return datetime(2026, 11, 27, 23, 30) if late else datetime(2026, 11, 27, 21, 59)

    with UploadQueue(tmp_path / "q.db", cloud.model_copy(update={"quiet_hours": "22:00-06:00"}), now=now) as queue:
        upload = queue.add_folder(folder, f"gs://{bucket}/p")
        with pytest.raises(OfflineError, match="quiet hours") as raised:
            queue.work(upload)
        assert raised.value.retry_after_s == 6.5 * 3600
        view = queue.view(upload)
        assert (view.state, view.attempts) == ("waiting", 0)
        assert gcs.log.count("send") == 2
        with pytest.raises(OfflineError, match="quiet hours"):
            queue.work(upload)
        assert gcs.log.count("send") == 2
    with UploadQueue(tmp_path / "q.db", cloud) as queue:
        queue.work(upload)
    assert len(gcs.objects(bucket)) == 5


@pytest.mark.parametrize("destination", ["/tmp/x", "s3://b/p", "gs://", "gs:///p", "gs://b/../p", "gs://b/a//b"])
def test_a_destination_that_is_none_is_refused(folder: Path, queue: UploadQueue, destination: str) -> None:
    with pytest.raises(InvalidError):
        queue.add_folder(folder, destination)
    assert queue.list() == ()


def test_what_cannot_be_queued_says_why(tmp_path: Path, queue: UploadQueue) -> None:
    with pytest.raises(NotFoundError, match="no folder"):
        queue.add_folder(tmp_path / "none", "gs://robots/p")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InvalidError, match="no file"):
        queue.add_folder(tmp_path / "nothing", "gs://robots/p")
    with pytest.raises(InvalidError, match="rename it"):
        queue.add_folder(write(tmp_path / "odd", {"a\nb": b"x"}), "gs://robots/p")
    with pytest.raises(NotFoundError, match="no upload 'x'"):
        queue.work("x")


def test_hidden_and_unfinished_files_stay_here(
    gcs: GcsFaults, bucket: str, tmp_path: Path, queue: UploadQueue
) -> None:
    folder = write(tmp_path / "some", {"a": b"1", ".hidden": b"2", ".work/b": b"3", "c.part": b"4"})
    queue.work(queue.add_folder(folder, f"gs://{bucket}"))
    assert gcs.objects(bucket) == {"a": b"1"}


def test_what_another_version_has_already_is_copied_there_and_not_sent(
    gcs: GcsFaults, bucket: str, tmp_path: Path, queue: UploadQueue
) -> None:
    old = write(tmp_path / "old", {"shard-0": LARGE, "shard-1": LARGE[::-1], "manifest.json": b"1"})
    new = write(
        tmp_path / "new", {"shard-0": LARGE, "shard-1": LARGE[::-1], "shard-2": b"new", "manifest.json": b"2"}
    )
    queue.work(queue.add_folder(old, f"gs://{bucket}/1.0.0"))
    gcs.server.delete(bucket, "1.0.0/shard-1")
    gcs.reset()
    gcs.plan += [Fault("lose", "other"), Fault("status", "other", code=503)]
    report = queue.work(queue.add_folder(new, f"gs://{bucket}/1.0.1"))
    assert (report.sent, report.skipped) == (3, 1)
    assert report.sent_bytes == len(LARGE) + 4
    expected = {"shard-0": LARGE, "shard-1": LARGE[::-1], "shard-2": b"new", "manifest.json": b"2"}
    assert gcs.objects(bucket, "1.0.1/") == {f"1.0.1/{name}": data for name, data in expected.items()}
    assert gcs.commits.count("1.0.1/shard-0") == 1
    assert gcs.metadata(bucket, "1.0.1/shard-0")["metadata"] == {"sha256": hashlib.sha256(LARGE).hexdigest()}
    assert gcs.commits[-1] == "1.0.1/manifest.json"
    # Who may not read, or has something else there, sends or is refused as ever.
    gcs.server.put(bucket, "other/shard-0", b"somebody else's")
    with pytest.raises(ConflictError, match="other/shard-0 is there with another content"):
        queue.work(queue.add_folder(old, f"gs://{bucket}/other"))
    gcs.plan += [Fault("status", "stat", code=403, reason="forbidden"), Fault("status", "other", code=403)]
    queue.work(queue.add_folder(write(tmp_path / "one", {"x": LARGE}), f"gs://{bucket}/one"))
    assert gcs.objects(bucket, "one/") == {"one/x": LARGE}
    assert gcs.objects(bucket, "other/") == {"other/shard-0": b"somebody else's"}
