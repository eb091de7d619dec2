"""Uploads on the network's bad days. Simulated: fake-gcs-server, and a proxy that has them on request."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brain_service.cloud.patience import RetryPolicy
from brain_service.cloud.upload_queue import OfflineError, UploadQueue
from brain_service.errors import (
    BrainError,
    ForbiddenError,
    InvalidError,
    TooManyError,
    UnauthorizedError,
)
from brain_service.settings import CloudSettings
from tests.fakes.gcs_faults import Action, Fault, GcsFaults

from .uploads import CHUNK, LARGE, QUICK, finish, write


@pytest.mark.parametrize("kind", ["begin", "send", "insert"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", code=503),
        Fault("status", code=429, reason="rateLimitExceeded"),
        Fault("status", code=403, reason="userRateLimitExceeded"),
        Fault("status", code=502, message="<html>bad gateway</html>"),
        Fault("drop"),
        Fault("lose"),
        Fault("tear", bytes_in=100_000),
        Fault("garble"),
    ],
    ids=lambda fault: f"{fault.action}-{fault.code}",
)
def test_one_fault_costs_a_retry_and_nothing_else(
    gcs: GcsFaults, bucket: str, tmp_path: Path, queue: UploadQueue, kind: str, fault: Fault
) -> None:
    folder = write(tmp_path / "two", {"shard": LARGE, "manifest.json": b"{}"})
    last = {"send": 2, "begin": 0, "insert": 0}[kind] if fault.action == "garble" else 0
    gcs.plan.append(Fault(**{**fault.__dict__, "kind": kind, "skip": last}))
    report = queue.work(queue.add_folder(folder, f"gs://{bucket}/p"))
    assert gcs.objects(bucket) == {"p/shard": LARGE, "p/manifest.json": b"{}"}
    assert gcs.plan == []
    assert gcs.commits == ["p/shard", "p/manifest.json"]
    assert report.sent_bytes == len(LARGE) + 2 or fault.action in ("lose", "tear")


def test_a_torn_chunk_goes_on_at_the_servers_offset(
    gcs: GcsFaults, bucket: str, tmp_path: Path, gcs_large_chunks: CloudSettings
) -> None:
    data = LARGE * 4
    folder = write(tmp_path / "one", {"shard": data})
    gcs.plan.append(Fault("tear", "send", bytes_in=600_000))
    with UploadQueue(tmp_path / "brain.db", gcs_large_chunks, policy=QUICK) as queue:
        queue.work(queue.add_folder(folder, f"gs://{bucket}/p"))
    assert gcs.objects(bucket) == {"p/shard": data}
    # What was torn above the last whole step of 256 KiB, and no more, went twice.
    assert gcs.body_bytes - len(data) == 600_000 - 2 * CHUNK
    assert gcs.log.count("offset") == 1


@pytest.fixture
def gcs_large_chunks(cloud: CloudSettings) -> CloudSettings:
    """The same settings with chunks of 1 MiB."""
    return cloud.model_copy(update={"chunk_bytes": 4 * CHUNK})


@pytest.mark.parametrize("code", [404, 410])
@pytest.mark.parametrize("kind", ["send", "offset"])
def test_an_expired_session_begins_anew(
    gcs: GcsFaults, bucket: str, tmp_path: Path, queue: UploadQueue, kind: str, code: int
) -> None:
    folder = write(tmp_path / "one", {"shard": LARGE})
    upload = queue.add_folder(folder, f"gs://{bucket}/p")
    gcs.plan += [Fault("status", "send", skip=1, code=503, headers=(("Retry-After", "100"),))]
    with pytest.raises(OfflineError):
        queue.work(upload)
    gcs.plan += [Fault("status", kind, code=code, reason="notFound")]  # type: ignore[arg-type]
    queue.work(upload)
    assert gcs.objects(bucket) == {"p/shard": LARGE}
    assert gcs.log.count("begin") == 2


def test_sessions_that_always_expire_are_given_up(
    gcs: GcsFaults, bucket: str, tmp_path: Path, queue: UploadQueue
) -> None:
    folder = write(tmp_path / "one", {"shard": LARGE})
    gcs.plan += [Fault("status", "send", skip=1, code=410, reason="notFound") for _ in range(20)]
    with pytest.raises(OfflineError, match="sessions were lost"):
        queue.work(queue.add_folder(folder, f"gs://{bucket}/p"))
    assert gcs.log.count("begin") == 4


def test_retry_after_is_kept_and_one_that_is_too_long_parks_the_upload(
    gcs: GcsFaults, bucket: str, folder: Path, tmp_path: Path, cloud: CloudSettings
) -> None:
    with UploadQueue(tmp_path / "q.db", cloud, policy=RetryPolicy(tries=3, base_s=0.0, cap_s=0.5)) as queue:
        upload = queue.add_folder(folder, f"gs://{bucket}/p")
        gcs.plan.append(Fault("status", "begin", code=429, headers=(("Retry-After", "7200"),)))
        with pytest.raises(OfflineError, match="429 injected") as raised:
            queue.work(upload)
        assert raised.value.retry_after_s == 7200
        view = queue.view(upload)
        assert (view.state, view.attempts) == ("waiting", 1)
        assert view.next_ns > view.updated_ns + 7199e9
        finish(queue, upload)
        assert queue.view(upload).attempts == 0


def test_without_a_network_the_queue_parks_longer_and_longer_and_keeps_what_it_has(
    bucket: str, folder: Path, tmp_path: Path, cloud: CloudSettings, gcs: GcsFaults
) -> None:
    away = cloud.model_copy(update={"storage_endpoint": "http://127.0.0.1:9"})
    waits = []
    for attempt in range(1, 9):
        with UploadQueue(tmp_path / "q.db", away, policy=QUICK) as queue:
            upload = queue.add_folder(folder, f"gs://{bucket}/p")
            with pytest.raises(OfflineError, match="check the network"):
                queue.work(upload)
            view = queue.view(upload)
            assert view.attempts == attempt
            waits.append((view.next_ns - view.updated_ns) / 1e9)
    assert all(30 <= wait <= 3600 for wait in waits)
    assert waits[-1] > 1800
    with UploadQueue(tmp_path / "q.db", cloud, policy=QUICK) as queue:
        queue.work(queue.list()[0].upload_id)
    assert len(gcs.objects(bucket)) == 5


REFUSALS: list[tuple[Fault, type[BrainError], str]] = [
    (Fault("status", code=401, reason="authError", message="Invalid Credentials"), UnauthorizedError, "login"),
    (
        Fault("status", code=401, headers=(("Date", "Wed, 01 Jan 2020 00:00:00 GMT"),)),
        UnauthorizedError,
        "ahead.*timedatectl",
    ),
    (Fault("status", code=403, reason="forbidden", message="no storage.objects.create"), ForbiddenError, "right"),
    (Fault("status", code=403, reason="quotaExceeded"), TooManyError, "quota"),
    (Fault("status", code=403, reason="accountDisabled", message="billing"), ForbiddenError, "billing"),
    (Fault("status", code=400, reason="invalid"), InvalidError, "400 injected"),
]


@pytest.mark.parametrize(("fault", "kind", "says"), REFUSALS, ids=lambda value: getattr(value, "reason", None))
def test_what_no_waiting_heals_is_said_at_once_and_kept_in_the_queue(
    gcs: GcsFaults,
    bucket: str,
    folder: Path,
    queue: UploadQueue,
    fault: Fault,
    kind: type[BrainError],
    says: str,
) -> None:
    gcs.plan.append(Fault(**{**fault.__dict__, "kind": "insert"}))
    upload = queue.add_folder(folder, f"gs://{bucket}/p")
    with pytest.raises(kind, match=says):
        queue.work(upload)
    assert queue.view(upload).state == "failed"
    assert "p/manifest.json" not in gcs.objects(bucket)
    gcs.plan.clear()
    queue.work(upload)
    assert len(gcs.objects(bucket)) == 5


def test_a_checksum_that_stays_wrong_parks_and_deletes_nothing(
    gcs: GcsFaults, bucket: str, tmp_path: Path, queue: UploadQueue
) -> None:
    folder = write(tmp_path / "one", {"small": b"hello"})
    upload = queue.add_folder(folder, f"gs://{bucket}/p")
    gcs.plan += [Fault("garble", "insert"), *[Fault("garble", "stat")] * 5]
    with pytest.raises(OfflineError, match=r"says it has 5 bytes with CRC-32C AAAAAA==.*nothing was deleted"):
        queue.work(upload)
    assert gcs.objects(bucket) == {"p/small": b"hello"}
    queue.work(upload)
    assert queue.view(upload).state == "done"


_faults = st.lists(
    st.builds(
        Fault,
        st.sampled_from(list(Action.__args__)),  # type: ignore[attr-defined]
        st.sampled_from(["begin", "offset", "send", "insert", "stat", None]),
        code=st.sampled_from([429, 500, 503, 504, 408]),
        bytes_in=st.integers(0, 300_000),
        skip=st.integers(0, 3),
    ),
    max_size=8,
)


@pytest.mark.long
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=_faults, number=st.integers(0, 2**40))
def test_law_whatever_befalls_it_the_same_objects_are_there_in_the_end(
    gcs: GcsFaults, bucket: str, tmp_path: Path, cloud: CloudSettings, plan: list[Fault], number: int
) -> None:
    gcs.reset()
    files = {"manifest.json": b"{}", "shard-0": LARGE, "shard-1": LARGE[: CHUNK + 1], "shard-2": b"tiny"}
    folder = write(tmp_path / "law", files)
    # A garbled list of facts would be a lie about the object, which only whoever looks at it can settle.
    gcs.plan += [fault for fault in plan if (fault.action, fault.kind) != ("garble", None)]
    gcs.plan[:] = [fault for fault in gcs.plan if fault.action != "garble" or fault.kind in ("send", "insert")]
    prefix = f"p{number}-{len(list(tmp_path.glob('law-*.db')))}"
    with UploadQueue(tmp_path / f"law-{prefix}.db", cloud, policy=QUICK) as queue:
        finish(queue, queue.add_folder(folder, f"gs://{bucket}/{prefix}"))
    assert gcs.objects(bucket, f"{prefix}/") == {f"{prefix}/{name}": data for name, data in files.items()}
    assert gcs.commits[-1] == f"{prefix}/manifest.json"
    assert len(gcs.commits) == len(files), "no object was written twice"
