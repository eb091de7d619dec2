"""Remotes on a bucket and on disk behave alike. Simulated: fake-gcs-server behind the proxy."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as google_storage
from google.cloud.storage._media.requests import ResumableUpload

from brain_service.cloud.objects import Bucket
from brain_service.cloud.patience import OfflineError, RetryPolicy
from brain_service.cloud.storage import BucketRemote, Remote, open_remote
from brain_service.errors import (
    BrainError,
    CorruptDataError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    TooLargeError,
)
from brain_service.settings import CloudSettings
from tests.fakes.gcs_faults import STEP_BYTES, Fault, GcsFaults

QUICK = RetryPolicy(tries=4, base_s=0.001, cap_s=0.01)
LARGE = bytes(range(256)) * 4096  # 1 MiB


@dataclass(frozen=True)
class Filled:
    """A remote of either kind, and how another program puts a file there."""

    remote: Remote
    put: Callable[[str, bytes], None]


@pytest.fixture(params=["gs", "local"])
def there(
    request: pytest.FixtureRequest, gcs: GcsFaults, bucket: str, cloud: CloudSettings, tmp_path: Path
) -> Filled:
    """An empty place of either kind."""
    if request.param == "gs":
        return Filled(
            open_remote(f"gs://{bucket}/run/1/", cloud, QUICK),
            lambda name, data: gcs.server.put(bucket, f"run/1/{name}", data),
        )

    def put(name: str, data: bytes) -> None:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(data)

    return Filled(open_remote(tmp_path / "run", cloud, QUICK), put)


def test_what_lies_there_is_read_and_fetched(there: Filled, tmp_path: Path) -> None:
    files = {
        "status.json": b"{}",
        "models/x y/manifest.json": b"m" * 1000,
        "models/empty": b"",
        "a&b?c#d%": b"odd",
    }
    for name, data in files.items():
        there.put(name, data)
    assert {name: there.remote.read(name) for name in files} == files
    for name, data in files.items():
        there.remote.download(name, tmp_path / "to" / name, len(data), hashlib.sha256(data).hexdigest())
        assert (tmp_path / "to" / name).read_bytes() == data
    there.put("status.json", b"newer")
    assert there.remote.read("status.json") == b"newer"


def test_what_is_missing_or_leads_out_is_refused(there: Filled, tmp_path: Path) -> None:
    place = there.remote
    for call in (lambda: place.read("none"), lambda: place.download("none", tmp_path / "none")):
        with pytest.raises(NotFoundError, match=f"{place.location}/none"):
            call()
    assert not (tmp_path / "none").exists()
    for name in ("../x", "/etc/passwd", "a//b", "a/./b", "", "a\nb", "x" * 1025, "a\\..\\b"):
        with pytest.raises(InvalidError):
            place.read(name)
    there.put("long", b"x" * 100)
    with pytest.raises(TooLargeError, match="longer than the 99 bytes"):
        place.read("long", max_bytes=99)


def test_a_download_has_the_promised_content_or_is_not_there(there: Filled, tmp_path: Path) -> None:
    place = there.remote
    there.put("file", LARGE)
    target, digest = tmp_path / "to" / "file", hashlib.sha256(LARGE).hexdigest()
    for size_bytes, sha256 in ((len(LARGE) - 1, digest), (len(LARGE) + 1, digest), (len(LARGE), "0" * 64)):
        with pytest.raises(CorruptDataError, match="its size or SHA-256"):
            place.download("file", target, size_bytes, sha256)
        assert list(target.parent.iterdir()) == []
    target.with_name("file.part").write_bytes(LARGE[:700_000])
    seen: list[int] = []
    place.download("file", target, len(LARGE), digest, lambda done, _: seen.append(done))
    assert target.read_bytes() == LARGE
    assert seen[0] > 700_000, "what was there was not fetched again"
    seen.clear()
    place.download("file", target, len(LARGE), digest, lambda done, _: seen.append(done))
    assert seen == []
    target.with_name("file.part").write_bytes(b"of another time")
    place.download("file", target)
    assert target.read_bytes() == LARGE


def test_a_connection_that_breaks_goes_on_where_it_was(
    gcs: GcsFaults, bucket: str, cloud: CloudSettings, tmp_path: Path
) -> None:
    place = open_remote(f"gs://{bucket}", cloud, QUICK)
    gcs.server.put(bucket, "file", LARGE)
    gcs.plan += [Fault("status", code=503), Fault("drop"), Fault("lose"), Fault("status", code=429)]
    with pytest.raises(OfflineError):
        place.download("file", tmp_path / "file", len(LARGE), hashlib.sha256(LARGE).hexdigest())
    gcs.plan += [Fault("status", code=503), Fault("drop"), Fault("lose")]
    place.download("file", tmp_path / "file", len(LARGE), hashlib.sha256(LARGE).hexdigest())
    assert (tmp_path / "file").read_bytes() == LARGE
    gcs.plan += [Fault("status", code=503), Fault("drop"), Fault("lose")]
    assert place.read("file") == LARGE


REFUSED: list[tuple[Fault, type[BrainError]]] = [
    (Fault("status", code=403, reason="forbidden"), ForbiddenError),
    (Fault("status", code=404, reason="notFound", message="The specified bucket does not exist."), NotFoundError),
]


@pytest.mark.parametrize(("fault", "kind"), REFUSED)
def test_a_refusal_is_not_repeated(
    gcs: GcsFaults, bucket: str, cloud: CloudSettings, tmp_path: Path, fault: Fault, kind: type[BrainError]
) -> None:
    place = open_remote(f"gs://{bucket}/run", cloud)
    for call in (lambda: place.read("status.json"), lambda: place.download("status.json", tmp_path / "status")):
        gcs.reset()
        gcs.plan.append(fault)
        with pytest.raises(kind, match=f"gs://{bucket}/run"):
            call()
        assert len(gcs.log) == 1


@pytest.mark.parametrize("text", ["gs://", "gs:///x", "s3://b/x", "http://b/x", "gs://b/a/../c"])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        open_remote(text, CloudSettings())


def test_a_path_that_lost_a_slash_means_the_bucket(cloud: CloudSettings) -> None:
    place = open_remote(Path("gs://robots/run"), cloud)
    assert isinstance(place, BucketRemote)
    assert place.location == "gs://robots/run"
    assert open_remote("gs://robots", cloud).location == "gs://robots"


def test_the_proxys_sessions_are_what_googles_own_client_expects(gcs: GcsFaults, bucket: str) -> None:
    """The judge of our fake: google-cloud-storage uploads in chunks, is torn, and goes on."""
    client = google_storage.Client(
        project="p", credentials=AnonymousCredentials(), client_options={"api_endpoint": gcs.url}
    )
    # Above 8 MiB it begins a session.
    data = LARGE * 9
    blob: Any = client.bucket(bucket).blob("by/google", chunk_size=4 * STEP_BYTES)
    gcs.plan += [
        Fault("tear", "send", bytes_in=400_000),
        Fault("status", "send", code=503),
        Fault("lose", "send", skip=2),
        Fault("status", "begin", code=429),
    ]
    blob.upload_from_string(data, if_generation_match=0, checksum="crc32c")
    assert gcs.plan == []
    assert gcs.objects(bucket) == {"by/google": data}
    assert open_remote(f"gs://{bucket}/by", CloudSettings(storage_endpoint=gcs.url)).read("google") == data
    with pytest.raises(Exception, match="412"):
        blob.upload_from_string(data, if_generation_match=0)


def test_a_session_of_ours_is_one_that_googles_own_client_takes_up(
    gcs: GcsFaults, bucket: str, cloud: CloudSettings
) -> None:
    ours = Bucket(cloud, bucket)
    session = ours.begin("half", len(LARGE), crc32c="", metadata={"sha256": "x"})
    assert ours.send(session, "half", LARGE[:STEP_BYTES], 0, len(LARGE)) == STEP_BYTES
    theirs: Any = ResumableUpload("unused", STEP_BYTES, checksum=None)
    theirs._resumable_url, theirs._stream, theirs._invalid = session, io.BytesIO(LARGE), True
    theirs._total_bytes, theirs._content_type = len(LARGE), "application/octet-stream"
    link = requests.Session()
    theirs.recover(link)
    assert theirs.bytes_uploaded == STEP_BYTES
    theirs.transmit_next_chunk(link)
    assert ours.offset(session, "half", len(LARGE)) == 2 * STEP_BYTES
    while not theirs.finished:
        theirs.transmit_next_chunk(link)
    done = ours.offset(session, "half", len(LARGE))
    assert done == ours.stat("half")
    assert gcs.objects(bucket) == {"half": LARGE}
