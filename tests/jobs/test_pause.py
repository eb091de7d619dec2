"""A training that rests while the robot is hot or weak: seen in the job, cancelled at rest, and gone on with."""

from pathlib import Path

import pytest

from brain_service.jobs.events import read_events
from brain_service.jobs.folder import JobFolder
from brain_service.jobs.job import Job
from brain_service.jobs.table import JobTable
from tests.hardware.sysfs import set_temperature, set_under_voltage
from tests.jobs.recordings import write_episodes
from tests.jobs.running import running_runner, wait_ended, wait_until

pytestmark = pytest.mark.slow

SMALL = {"batch_size": 2, "sequence_length": 8, "learning_rate": 1e-3}


def details(job: Job) -> str:
    return {stage.name: stage.details for stage in job.stages}["train"]


def test_a_training_rests_when_it_gets_hot_goes_on_when_cool_and_is_cancelled_at_rest(tmp_path: Path) -> None:
    data_dir, sysfs = tmp_path / "brain", tmp_path / "sys"
    write_episodes(data_dir / "episodes", 4, 12)
    set_temperature(sysfs, 60)
    table = JobTable(data_dir / "brain.db")
    job_id = table.create("train", SMALL | {"steps": 1_000_000}).job_id
    environment = {"BRAIN_GATES__SYSFS": str(sysfs), "BRAIN_GATES__POLL_INTERVAL_S": "0.05"}

    def progress_events() -> list[float]:
        events = [event.data for event in read_events(JobFolder(data_dir / "jobs", job_id).events)]
        return [event["step"] for event in events if event["kind"] == "metrics"]

    with running_runner(data_dir, **environment):
        wait_until(lambda: bool(progress_events()), "training to begin")
        set_temperature(sysfs, 82)
        wait_until(lambda: details(table.get(job_id)).startswith("paused: 82 C"), "the job to say that it rests")
        assert list((data_dir / "checkpoints" / job_id).glob("*/sha256.json")), "it rests without having saved"
        set_temperature(sysfs, 73)  # below the limit, not yet cool
        wait_until(
            lambda: details(table.get(job_id)).startswith("paused: 73 C"), "the reason to follow the sensor"
        )
        before = len(progress_events())
        set_temperature(sysfs, 60)
        wait_until(lambda: details(table.get(job_id)) == "", "the job to go on")
        wait_until(lambda: len(progress_events()) > before, "steps after the rest")
        set_under_voltage(sysfs, True)
        wait_until(lambda: "under-voltage" in details(table.get(job_id)), "the job to rest again")
        table.cancel(job_id)
        job = wait_ended(table, job_id)
    assert job.state == "cancelled"
    events = [event.data for event in read_events(JobFolder(data_dir / "jobs", job_id).events)]
    pauses = [(event["paused"], event["reason"][:4]) for event in events if event["kind"] == "pause"]
    assert pauses[:3] == [(True, "82 C"), (True, "73 C"), (False, "")]
    assert pauses[3] == (True, "unde")
