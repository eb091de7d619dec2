"""Parked jobs: nobody works on one before its time, none is lost, and no attempt is counted for waiting."""

import time
from pathlib import Path

import pytest

from brain_service.database import Database
from brain_service.errors import ConflictError
from brain_service.jobs.job import Job, Lane
from brain_service.jobs.rows import SCHEMA, VERSION
from brain_service.jobs.table import JobTable


@pytest.fixture
def table(tmp_path: Path) -> JobTable:
    return JobTable(tmp_path / "brain.db")


def claimed(table: JobTable, lane: Lane = "work") -> Job:
    job = table.claim_next(lane)
    assert job is not None
    return job


def test_a_parked_job_is_woken_in_its_lane_when_its_time_has_come(table: JobTable) -> None:
    job_id = table.create("train", {"target": "process"}).job_id
    claimed(table)
    table.park(job_id, "network", 0.3)
    assert table.claim_next("work") is None
    assert table.claim_next("network") is None
    time.sleep(0.35)
    assert table.claim_next("work") is None
    woken = claimed(table, "network")
    assert (woken.job_id, woken.state, woken.attempt) == (job_id, "running", 1)


def test_the_machine_is_free_while_a_job_waits(table: JobTable) -> None:
    waiting = table.create("train", {"target": "process"}).job_id
    claimed(table)
    table.park(waiting, "network", 3600)
    other = table.create("convert", {}).job_id
    assert claimed(table).job_id == other


def test_an_upload_never_waits_for_a_training(table: JobTable) -> None:
    table.create("train", {})
    upload = table.create("upload", {}).job_id
    assert claimed(table, "network").job_id == upload
    assert table.claim_next("network") is None
    assert claimed(table).kind == "train"


def test_a_restart_leaves_a_parked_job_parked_and_counts_no_attempt(table: JobTable, tmp_path: Path) -> None:
    job_id = table.create("train", {"target": "process"}).job_id
    claimed(table)
    table.park(job_id, "network", 0.0)
    for _ in range(5):
        # Woken, and then everything dies: the wait was only moved on.
        assert claimed(table, "network").attempt == 1
        assert table.running() == ()
        assert table.requeue_orphans(1) == ()
        table.park(job_id, "network", 0.0)
    assert table.get(job_id).state == "running"


def test_a_job_woken_for_the_machine_belongs_to_its_process(table: JobTable) -> None:
    job_id = table.create("train", {"target": "process"}).job_id
    claimed(table)
    table.park(job_id, "work", 0.0)
    assert claimed(table).job_id == job_id
    assert [job.job_id for job, _ in table.running()] == [job_id]
    assert not table.is_parked(job_id)


def test_a_cancelled_job_is_woken_at_once_and_only_once(table: JobTable) -> None:
    job_id = table.create("train", {"target": "process"}).job_id
    claimed(table)
    table.park(job_id, "network", 3600)
    assert table.cancel(job_id).cancel_requested
    assert claimed(table, "network").cancel_requested
    # Its worker could not reach the cloud: it waits as any other, and is not woken in a circle.
    table.park(job_id, "network", 3600)
    assert table.claim_next("network") is None


def test_a_clock_that_was_set_back_delays_no_job_by_a_year(table: JobTable, tmp_path: Path) -> None:
    job_id = table.create("train", {"target": "process"}).job_id
    claimed(table)
    table.park(job_id, "network", 1.0)
    database = Database(tmp_path / "brain.db", SCHEMA, VERSION)
    with database.transaction() as connection:
        connection.execute("UPDATE waits SET wake_ns = ?", (time.time_ns() + 365 * 86_400 * 10**9,))
    database.close()
    assert claimed(table, "network").job_id == job_id


def test_what_has_ended_waits_for_nothing(table: JobTable) -> None:
    job_id = table.create("train", {"target": "process"}).job_id
    claimed(table)
    table.park(job_id, "network", 0.0)
    table.finish(job_id, "failed")
    assert table.claim_next("network") is None
    with pytest.raises(ConflictError, match="not running"):
        table.park(job_id, "network", 0.0)


def test_a_parked_job_is_not_taken_while_its_last_worker_lives(table: JobTable) -> None:
    job_id = table.create("train", {"target": "process"}).job_id
    claimed(table)
    table.park(job_id, "network", 0.0)
    assert table.claim_next("network", {job_id}) is None
    assert claimed(table, "network").job_id == job_id


def test_a_table_of_before_there_were_waits_is_taken_on(tmp_path: Path) -> None:
    without = ";".join(part for part in SCHEMA.split(";") if "waits" not in part)
    old = Database(tmp_path / "brain.db", without, VERSION)
    with old.transaction() as connection:
        connection.execute(
            "INSERT INTO jobs (job_id, kind, params, created_ns, stages) VALUES ('old', 'convert', '{}', 1, ?)",
            ('[{"name":"convert","status":"pending","details":"","duration_s":null,"command":null}]',),
        )
    old.close()
    table = JobTable(tmp_path / "brain.db")
    assert claimed(table).job_id == "old"
    table.park("old", "work", 0.0)
    assert claimed(table).stages[0].started_ns is None
    table.close()


def test_a_new_runner_looks_at_once_after_all_that_goes_on_elsewhere(table: JobTable) -> None:
    away, here = (table.create("train", {"target": target}).job_id for target in ("process", "local"))
    claimed(table)
    table.park(away, "network", 1800)
    claimed(table)
    table.park(here, "work", 1800)
    table.wake_all("network")
    assert claimed(table, "network").job_id == away
    assert table.claim_next("work") is None


def test_a_look_that_its_runner_did_not_outlive_is_known_by_its_process(table: JobTable) -> None:
    job_id = table.create("train", {"target": "process"}).job_id
    claimed(table)
    table.park(job_id, "network", 0.0)
    assert table.interrupted_looks() == ()
    claimed(table, "network")
    table.set_process(job_id, "boot:17:23")
    assert table.interrupted_looks() == ("boot:17:23",)
    table.park(job_id, "network", 5.0)
    assert table.interrupted_looks() == ()
