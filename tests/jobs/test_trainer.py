"""Who trains is decided when a job is asked for, else as it starts to train; the job keeps it."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from brain_service.errors import InvalidError
from brain_service.hardware.probes import forget
from brain_service.jobs.context import JobContext
from brain_service.jobs.events import EventLog
from brain_service.jobs.job import Job
from brain_service.jobs.table import JobTable
from brain_service.jobs.trainer import UNDECIDED
from brain_service.settings import load_settings
from tests.hardware.runtimes import BROKEN_JAX, CUDA_TORCH, GOOD_TORCH, Robot, jax_on

CHOICE = {
    "trainer": "pytorch",
    "reason": "PyTorch 2.13.0 computes here, and JAX is not preferred",
    "alternatives": [{"trainer": "jax", "available": True, "reason": "JAX 0.10.0 computes on the CPU"}],
}


@pytest.fixture
def robot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Robot:
    found = Robot(tmp_path / "robot", monkeypatch)
    found.install("jax", jax_on("cpu"))
    found.install("torch", GOOD_TORCH)
    forget()
    return found


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


@pytest.mark.parametrize("before", [None, UNDECIDED])
@pytest.mark.parametrize(("asked", "trainer"), [("auto", "jax"), ("jax", "jax"), ("pytorch", "pytorch")])
def test_a_job_without_a_decision_decides_once_as_it_starts_to_train(
    robot: Robot, tmp_path: Path, asked: str, trainer: str, before: dict[str, Any] | None
) -> None:
    table = JobTable(tmp_path / "brain.db")
    created = table.create("pipeline", {"trainer": asked}, trainer=before)
    assert trainer_in_worker(tmp_path, table, created) == trainer
    kept = table.get(created.job_id).trainer
    assert kept is not None and kept["trainer"] == trainer and kept["alternatives"]
    robot.install("torch", CUDA_TORCH)
    robot.install("jax", BROKEN_JAX)
    assert trainer_in_worker(tmp_path, table, created) == trainer


def test_a_job_that_asked_for_what_does_not_compute_says_so_as_it_starts_to_train(
    robot: Robot, tmp_path: Path
) -> None:
    robot.install("torch", CUDA_TORCH)
    table = JobTable(tmp_path / "brain.db")
    created = table.create("train", {"trainer": "pytorch"}, trainer=UNDECIDED)
    with pytest.raises(InvalidError, match="libcudart"):
        trainer_in_worker(tmp_path, table, created)


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
