"""Jobs whose run is elsewhere: real runner and workers; storage and capacity are simulated, over HTTP."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from brain_service.jobs.job import Job
from brain_service.jobs.table import JobTable
from tests.fakes.control_plane import ControlPlane, running_control_plane
from tests.fakes.gcs import FakeGcs, fake_gcs
from tests.fakes.proxy import running_proxy
from tests.jobs.recordings import write_episodes
from tests.jobs.running import running_runner, wait_ended, wait_until

pytestmark = pytest.mark.long

RUN = {"preset": "development", "steps": 20, "target": "vertex"}


@pytest.fixture(scope="module")
def gcs() -> Iterator[FakeGcs]:
    with fake_gcs() as server:
        server.make_bucket("robots")
        yield server


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    with running_control_plane(tmp_path / "plane") as server:
        yield server


@pytest.fixture
def table(tmp_path: Path) -> Iterator[JobTable]:
    write_episodes(tmp_path / "brain" / "episodes", 4, 5)
    table = JobTable(tmp_path / "brain" / "brain.db")
    yield table
    table.close()


@contextlib.contextmanager
def runner(tmp_path: Path, gcs: FakeGcs, plane: ControlPlane, **settings: str) -> Iterator[None]:
    """A runner that is led to the emulator and the fake."""
    cloud = {
        "BUCKET": "robots",
        "PREFIX": tmp_path.name.replace("[", "-").replace("]", ""),
        "PROJECT": "lab-robots",
        "IMAGE": "example/trainer:1",
        "VERTEX_ENDPOINT": plane.url,
        "TPU_ENDPOINT": plane.url,
        "STORAGE_ENDPOINT": gcs.url,
        "POLL_INTERVAL_S": "0.3",
        "TOPOLOGY": "v5e:1x1",
    } | settings
    environment = {f"BRAIN_CLOUD__{name}": value for name, value in cloud.items()} | gcs.environment()
    with running_runner(tmp_path / "brain", **environment):
        yield


def stage(job: Job, name: str) -> tuple[str, str]:
    found = next(report for report in job.stages if report.name == name)
    return found.status, found.details


def creations(plane: ControlPlane) -> int:
    return int(sum(plane.report()["creations"].values()))


def wait_capacity(plane: ControlPlane, count: int) -> None:
    wait_until(lambda: creations(plane) == count, f"{count} creations")


def test_a_job_that_waits_for_a_machine_holds_up_nobody_and_lets_go_when_cancelled(
    tmp_path: Path, gcs: FakeGcs, plane: ControlPlane, table: JobTable
) -> None:
    plane.script(life={"queue_s": 3600})
    with runner(tmp_path, gcs, plane):
        waiting = table.create("train", RUN).job_id
        wait_capacity(plane, 1)
        other = table.create("convert", {"name": "others"}).job_id
        assert wait_ended(table, other).state == "succeeded"
        assert table.get(waiting).state == "running" and stage(table.get(waiting), "upload")[0] == "done"
        assert plane.report()["live"] == 1
        table.cancel(waiting)
        assert wait_ended(table, waiting).state == "cancelled"
        assert plane.report()["live"] == 0
    assert creations(plane) == 1


def test_a_cancelled_job_ends_only_once_nothing_bills(
    tmp_path: Path, gcs: FakeGcs, plane: ControlPlane, table: JobTable
) -> None:
    plane.script(life={"queue_s": 0, "run_s": 3600})
    with runner(tmp_path, gcs, plane):
        job_id = table.create("train", RUN | {"target": "queued_resource"}).job_id
        wait_until(lambda: plane.report()["live"] == 1, "capacity")
        plane.kill()
        table.cancel(job_id)
        wait_until(lambda: stage(table.get(job_id), "launch")[1].startswith("stopping"), "an honest answer")
        assert table.get(job_id).state == "running" and table.get(job_id).cancel_requested
        plane.start()
        assert wait_ended(table, job_id).state == "cancelled"
        assert plane.report()["live"] == 0


def test_a_run_that_always_fails_fails_the_job_with_its_reason(
    tmp_path: Path, gcs: FakeGcs, plane: ControlPlane, table: JobTable
) -> None:
    plane.script(life={"run_s": 0.1, "exit_code": 1})
    with runner(tmp_path, gcs, plane, MAX_ATTEMPTS="2"):
        ended = wait_ended(table, table.create("train", RUN).job_id)
    assert ended.state == "failed" and ended.error is not None
    assert creations(plane) <= 2 and plane.report()["live"] == 0
    assert stage(ended, "fetch")[0] == "pending" and "model_id" not in ended.result


def test_without_the_bucket_nothing_is_launched(
    tmp_path: Path, gcs: FakeGcs, plane: ControlPlane, table: JobTable
) -> None:
    with runner(tmp_path, gcs, plane, BUCKET="no-such-bucket"):
        ended = wait_ended(table, table.create("train", RUN).job_id)
    assert ended.state == "failed" and ended.error is not None
    assert "no-such-bucket" in ended.error["detail"]
    assert creations(plane) == 0


def test_a_job_outlives_a_network_that_is_away(
    tmp_path: Path, gcs: FakeGcs, plane: ControlPlane, table: JobTable
) -> None:
    plane.script(life={"queue_s": 3600})
    with running_proxy(int(gcs.url.rpartition(":")[2])) as proxy:
        proxy.refuse = True
        away = f"http://127.0.0.1:{proxy.port}"
        with runner(tmp_path, gcs, plane, STORAGE_ENDPOINT=away):
            job_id = table.create("train", RUN).job_id
            wait_until(lambda: table.is_parked(job_id), "the job to wait for the network")
            other = table.create("convert", {"name": "others"}).job_id
            assert wait_ended(table, other).state == "succeeded"
            assert table.get(job_id).state == "running" and table.get(job_id).attempt == 1
            proxy.refuse = False
            wait_capacity(plane, 1)
            table.cancel(job_id)
            assert wait_ended(table, job_id).state == "cancelled"


def test_what_bills_for_no_job_any_more_is_found_and_stopped(
    tmp_path: Path, gcs: FakeGcs, plane: ControlPlane, table: JobTable
) -> None:
    plane.script(life={"queue_s": 0, "run_s": 3600})
    with runner(tmp_path, gcs, plane):
        job_id = table.create("train", RUN | {"target": "queued_resource"}).job_id
        wait_until(lambda: plane.report()["live"] == 1, "capacity")
        wait_until(lambda: table.is_parked(job_id), "the job to wait")
    table.finish(job_id, "failed")
    with runner(tmp_path, gcs, plane):
        wait_until(lambda: plane.report()["live"] == 0, "the reaper")
    assert creations(plane) == 1
