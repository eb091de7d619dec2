"""What the daemon measures beside its work: the lateness of the loop, the medium, queues, a running training."""

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest

from brain_service.database import Database
from brain_service.health.disk_probe import DiskProbe
from brain_service.health.loop_lag import LoopLag
from brain_service.health.queues import job_counts, pending_uploads, running_jobs
from brain_service.health.training import training_now
from brain_service.jobs.events import EventLog
from brain_service.jobs.table import JobTable


def test_a_loop_that_is_blocked_is_seen_for_a_while() -> None:
    async def block() -> LoopLag:
        lag = LoopLag(period_s=0.01, window_s=0.3)
        measuring = asyncio.create_task(lag.run())
        await asyncio.sleep(0.05)
        time.sleep(0.15)  # noqa: ASYNC251  (the fault that is looked for)
        await asyncio.sleep(0.03)
        assert lag.worst_s >= 0.1
        await asyncio.sleep(0.4)
        measuring.cancel()
        return lag

    lag = asyncio.run(block())
    assert lag.worst_s < 0.1, "it is forgotten after its window"
    assert sum(lag.durations.counts[lag.durations.bounds.index(0.1) + 1 :]) >= 1, "and counted for ever"


def test_the_worst_of_the_window_is_kept_whatever_comes_after() -> None:
    lag = LoopLag(window_s=60)
    for late_s in (0.01, 0.5, 0.02, 0.3):
        lag.note(late_s)
    assert lag.worst_s == 0.5


def test_the_medium_is_asked_with_one_block_that_is_written_over(tmp_path: Path) -> None:
    probe = DiskProbe(tmp_path)
    assert probe.view() == (None, 0.0, "")
    for _ in range(3):
        probe.look()
    latency_s, waiting_s, error = probe.view()
    assert latency_s is not None and 0 < latency_s < 10
    assert (waiting_s, error) == (0.0, "")
    assert (tmp_path / ".write-probe").stat().st_size == 4096
    assert probe.durations.count == 3


def test_a_medium_that_refuses_is_told_with_its_reason(tmp_path: Path) -> None:
    probe = DiskProbe(tmp_path / "gone")
    probe.look()
    assert "No such file" in probe.view().error
    (tmp_path / "gone").mkdir()
    probe.look()
    assert probe.view().error == ""


def test_a_medium_that_does_not_answer_is_seen_while_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()

    def hangs(_: int) -> None:
        assert answer.wait(10)

    monkeypatch.setattr(os, "fdatasync", hangs)
    probe = DiskProbe(tmp_path, first_s=0.0)
    probe.start()
    give_up_s = time.monotonic() + 5
    while probe.view().waiting_s < 0.05:
        assert time.monotonic() < give_up_s
        time.sleep(0.01)
    answer.set()
    probe.stop()
    assert probe.view().waiting_s == 0.0


def test_queues_are_counted_and_a_table_that_is_missing_has_nothing(tmp_path: Path) -> None:
    database = tmp_path / "brain.db"
    assert (job_counts(database), pending_uploads(database)) == ({}, {})
    assert not database.exists(), "looking makes no file"
    table = JobTable(database)
    for kind in ("convert", "convert", "train"):
        table.create(kind, {})
    claimed = table.claim_next()
    assert claimed is not None
    assert job_counts(database) == {("convert", "running"): 1, ("convert", "queued"): 1, ("train", "queued"): 1}
    assert running_jobs(database) == [claimed.job_id]
    assert pending_uploads(database) == {}
    uploads = "CREATE TABLE uploads (upload_id TEXT PRIMARY KEY, state TEXT NOT NULL)"
    with Database(database, uploads, 1, name="uploads").transaction() as connection:
        states = [("a", "waiting"), ("b", "waiting"), ("c", "done"), ("d", "failed")]
        connection.executemany("INSERT INTO uploads VALUES (?, ?)", states)
    assert pending_uploads(database) == {"waiting": 2, "failed": 1}
    table.close()


def test_a_database_that_is_none_has_no_queues(tmp_path: Path) -> None:
    (tmp_path / "brain.db").write_bytes(b"no database at all" * 100)
    assert (job_counts(tmp_path / "brain.db"), running_jobs(tmp_path / "brain.db")) == ({}, [])


def test_the_training_that_runs_is_read_from_its_last_event(tmp_path: Path) -> None:
    database, jobs_dir = tmp_path / "brain.db", tmp_path / "jobs"
    assert training_now(database, jobs_dir) == {}
    table = JobTable(database)
    table.create("train", {})
    job = table.claim_next()
    assert job is not None
    assert training_now(database, jobs_dir) == {}, "it has said nothing yet"
    (jobs_dir / job.job_id).mkdir(parents=True)
    path = jobs_dir / job.job_id / "events.jsonl"
    with EventLog(path) as events:
        for step in range(3):
            events.append("metrics", loss=1.0 / (step + 1), step=step, steps=10, steps_per_s=2.5)
        events.append("progress", progress=0.2)
    with path.open("ab") as file:
        file.write(b'{"kind": "metrics", "loss": 9')
    found = training_now(database, jobs_dir)
    assert found == {"loss": 1 / 3, "step": 2.0, "steps": 10.0, "steps_per_s": 2.5}
    table.finish(job.job_id, "succeeded")
    assert training_now(database, jobs_dir) == {}, "nothing trains any more"
    table.close()
