"""Who trains is decided when a job is asked for; the job keeps it, and its worker reads it."""

import sqlite3
from pathlib import Path

import pytest

from brain_service.jobs.context import JobContext
from brain_service.jobs.events import EventLog
from brain_service.jobs.job import Job
from brain_service.jobs.table import JobTable
from brain_service.settings import load_settings

CHOICE = {
    "trainer": "pytorch",
    "reason": "PyTorch 2.13.0 computes here, and JAX is not preferred",
    "alternatives": [{"trainer": "jax", "available": True, "reason": "JAX 0.10.0 computes on the CPU"}],
}


def trainer_in_worker(folder: Path, table: JobTable, job: Job) -> str:
    settings = load_settings({"data_dir": folder}, environ={})
    with EventLog(folder / "events.jsonl") as events:
        return JobContext(settings, table, table.get(job.job_id), events).trainer


def test_a_job_keeps_its_trainer_through_restarts_and_retries(tmp_path: Path) -> None:
    table = JobTable(tmp_path / "brain.db")
    created = table.create("train", {}, idempotency_key="k", trainer=CHOICE)
    assert created.trainer == CHOICE and created.to_json()["trainer"] == CHOICE
    table.claim_next()
    table.close()
    table = JobTable(tmp_path / "brain.db")
    (requeued,) = table.requeue_orphans(3)
    assert requeued.trainer == CHOICE
    other = CHOICE | {"trainer": "jax"}
    assert table.create("train", {}, idempotency_key="k", trainer=other).trainer == CHOICE
    assert trainer_in_worker(tmp_path, table, created) == "pytorch"


@pytest.mark.parametrize(("asked", "trainer"), [("auto", "jax"), ("jax", "jax"), ("pytorch", "pytorch")])
def test_a_job_without_a_decision_takes_what_it_asks_for(tmp_path: Path, asked: str, trainer: str) -> None:
    table = JobTable(tmp_path / "brain.db")
    created = table.create("pipeline", {"trainer": asked})
    assert created.trainer is None
    assert trainer_in_worker(tmp_path, table, created) == trainer


def test_a_file_of_an_older_version_gets_the_column_and_keeps_its_jobs(tmp_path: Path) -> None:
    table = JobTable(tmp_path / "brain.db")
    old = table.create("train", {})
    table.close()
    connection = sqlite3.connect(tmp_path / "brain.db")
    connection.execute("ALTER TABLE jobs DROP COLUMN trainer")
    connection.commit()
    connection.close()
    tables = [JobTable(tmp_path / "brain.db") for _ in range(2)]
    assert tables[0].get(old.job_id) == old
    new = tables[1].create("train", {}, trainer=CHOICE)
    assert tables[0].get(new.job_id).trainer == CHOICE
