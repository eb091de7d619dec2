"""A training that an operator pauses: it rests like in heat, says why, and goes on when told to."""

import threading
import time
from pathlib import Path

import pytest

from brain_service.jobs.context import JobContext
from brain_service.jobs.events import EventLog, read_events
from brain_service.jobs.hold import Hold
from brain_service.jobs.job import StageReport
from brain_service.jobs.stages import convert, train
from brain_service.jobs.table import JobTable
from brain_service.settings import Settings
from tests.jobs.recordings import write_episodes

SMALL = {"preset": "development", "steps": 2, "batch_size": 2, "sequence_length": 8}


@pytest.mark.long
def test_a_training_rests_until_the_operator_resumes(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    write_episodes(settings.episodes_dir, 4, 12)
    hold = Hold(settings.jobs_dir)
    hold.pause("a visitor is here")
    table = JobTable(settings.database)
    table.create("train", SMALL)
    job = table.claim_next()
    assert job is not None
    path = tmp_path / "told.jsonl"
    context = JobContext(settings, table, job, EventLog(path))
    context.result |= convert.run(context).result
    context.enter_stage(StageReport("train", "running"), (0.0, 1.0))
    rested: list[str] = []

    def operator() -> None:
        give_up = time.monotonic() + 200
        while not rested and time.monotonic() < give_up:
            rested.extend(stage.details for stage in table.get(job.job_id).stages if "paused" in stage.details)
            time.sleep(0.05)
        hold.resume()

    watching = threading.Thread(target=operator)
    watching.start()
    result = train.run(context).result["train"]
    watching.join()
    table.close()
    assert rested == ["paused: a visitor is here; POST /jobs/resume goes on"]
    assert result["steps"] == 2
    told = [event.data for event in read_events(path)]
    assert [event["paused"] for event in told if event["kind"] == "pause"] == [True, False]
    assert [event["step"] for event in told if event["kind"] == "metrics"][-1] == 2
