"""Stages and their reports, run in this process: what they refuse, skip and pass on."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brain_service.errors import BrainError, CancelledJobError, ConflictError, InvalidError, UnavailableError
from brain_service.jobs.context import JobContext
from brain_service.jobs.events import EventLog, read_events
from brain_service.jobs.job import StageReport
from brain_service.jobs.pipeline import run_stages
from brain_service.jobs.stages import activate, convert, health, inventory
from brain_service.jobs.table import JobTable
from brain_service.jobs.worker import problem_of
from brain_service.settings import CaptureSettings, Settings
from tests.jobs.recordings import write_episodes


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def table(settings: Settings) -> Iterator[JobTable]:
    table = JobTable(settings.database)
    yield table
    table.close()


def context_of(settings: Settings, table: JobTable, kind: str, **params: Any) -> JobContext:
    """Create and claim a job, and return what its worker would work with."""
    table.create(kind, params)
    job = table.claim_next()
    assert job is not None
    return JobContext(settings, table, job, EventLog(settings.data_dir / "events.jsonl"))


def test_too_little_disk_stops_a_job_before_it_works(settings: Settings, table: JobTable) -> None:
    greedy = settings.model_copy(update={"capture": CaptureSettings(min_free_bytes=2**60)})
    with pytest.raises(UnavailableError, match=r"MiB free under .*delete old"):
        health.run(context_of(greedy, table, "train"))
    assert "MiB of disk free" in health.run(context_of(settings, table, "train")).details


def test_nothing_recorded_is_an_error_that_says_how_to_record(settings: Settings, table: JobTable) -> None:
    context = context_of(settings, table, "pipeline")
    with pytest.raises(InvalidError, match="POST /episodes"):
        inventory.run(context)
    write_episodes(settings.episodes_dir, 3, 2)
    assert inventory.run(context).result["inventory"]["episodes"] == 3


def test_a_training_on_a_named_dataset_converts_nothing(settings: Settings, table: JobTable) -> None:
    write_episodes(settings.episodes_dir, 3, 2)
    made = convert.run(context_of(settings, table, "convert"))
    assert (made.skipped, made.result["dataset"]["version"]) == (False, "1.0.0")
    write_episodes(settings.episodes_dir, 1, 2, seed=1)
    given = convert.run(context_of(settings, table, "train", dataset="episodes"))
    assert given.skipped
    assert given.result["dataset"] == {
        name: made.result["dataset"][name] for name in ("name", "version", "splits")
    }


def test_a_damaged_recording_is_left_out_and_told(settings: Settings, table: JobTable) -> None:
    write_episodes(settings.episodes_dir, 3, 2)
    (settings.episodes_dir / "broken.jsonl").write_text('{"observation": ')
    context = context_of(settings, table, "convert")
    assert convert.run(context).result["dataset"]["quarantined"][0]["file"] == "broken.jsonl"
    told = [event.data.get("message", "") for event in read_events(settings.data_dir / "events.jsonl")]
    assert any("left out broken.jsonl" in message for message in told)


def test_a_pipeline_without_a_held_out_episode_fails_before_it_trains(settings: Settings, table: JobTable) -> None:
    write_episodes(settings.episodes_dir, 1, 2)
    assert convert.run(context_of(settings, table, "train")).result["dataset"]["splits"] == {"train": 1}
    for params in ({}, {"dataset": "episodes"}):
        with pytest.raises(InvalidError, match="record at least two episodes"):
            convert.run(context_of(settings, table, "pipeline", **params))


def test_stages_of_an_earlier_attempt_are_passed_over(settings: Settings, table: JobTable) -> None:
    context = context_of(settings, table, "convert")
    done = StageReport("convert", "done", "made before")
    table.progress(context.job.job_id, 1.0, [done], {"dataset": {"name": "episodes"}})
    again = JobContext(settings, table, table.get(context.job.job_id), EventLog(settings.data_dir / "e"))
    # Nothing was recorded here: the stage would fail if it ran.
    run_stages(again)
    assert again.result == {"dataset": {"name": "episodes"}}
    assert again.stages == {"convert": done}


def test_a_report_carries_what_to_type_and_how_long_it_took(settings: Settings, table: JobTable) -> None:
    write_episodes(settings.episodes_dir, 3, 2)
    context = context_of(settings, table, "convert")
    run_stages(context)
    (report,) = table.get(context.job.job_id).stages
    assert report.status == "done"
    assert report.command is not None
    assert report.command.startswith("brain convert --input-dir")
    assert report.duration_s is not None
    assert "3 episodes" in report.details


def test_a_job_asked_to_stop_does_so_at_its_next_report(settings: Settings, table: JobTable) -> None:
    write_episodes(settings.episodes_dir, 3, 2)
    context = context_of(settings, table, "convert")
    context.request_stop()
    with pytest.raises(CancelledJobError):
        convert.run(context)
    assert not (settings.datasets_dir / "episodes" / "1.0.0").exists()


def test_progress_of_a_restarted_job_does_not_run_back(settings: Settings, table: JobTable) -> None:
    context = context_of(settings, table, "pipeline")
    table.progress(context.job.job_id, 0.6)
    again = JobContext(settings, table, table.get(context.job.job_id), EventLog(settings.data_dir / "e"))
    again.enter_stage(StageReport("train", "running"), (0.1, 0.9))
    again.report(1.0)
    assert table.get(context.job.job_id).progress == pytest.approx(0.9)
    told = [
        event.data["progress"]
        for event in read_events(settings.data_dir / "e")
        if event.data["kind"] == "progress"
    ]
    assert told == pytest.approx([0.6, 0.9])


def answer(table: JobTable, ok: bool, detail: str = "") -> threading.Thread:
    """Answer the next activation as the daemon would."""

    def daemon() -> None:
        while not (pending := table.pending_activations()):
            time.sleep(0.01)
        table.resolve_activation(pending[0].activation_id, ok, detail)

    thread = threading.Thread(target=daemon)
    thread.start()
    return thread


def test_activation_is_asked_of_the_daemon(settings: Settings, table: JobTable) -> None:
    context = context_of(settings, table, "pipeline")
    context.result["model_id"] = "0123456789abcdef"
    daemon = answer(table, True)
    assert activate.run(context).result == {"activated": True}
    daemon.join()
    assert str(activate.command(context)).endswith("/models/0123456789abcdef/activate")


def test_a_refused_activation_fails_with_the_daemons_reason(settings: Settings, table: JobTable) -> None:
    context = context_of(settings, table, "pipeline")
    context.result["model_id"] = "0123456789abcdef"
    daemon = answer(table, False, "golden check: 0.3 is over 1e-4")
    with pytest.raises(ConflictError, match=r"golden check: 0\.3") as caught:
        activate.run(context)
    daemon.join()
    assert caught.value.problem()["model_id"] == "0123456789abcdef"


def test_a_job_that_is_cancelled_while_it_waits_withdraws_its_activation(
    settings: Settings, table: JobTable
) -> None:
    context = context_of(settings, table, "pipeline")
    context.result["model_id"] = "0123456789abcdef"
    context.request_stop()
    with pytest.raises(CancelledJobError):
        activate.run(context)
    assert table.pending_activations() == ()


def test_activation_that_was_not_asked_for_is_skipped(settings: Settings, table: JobTable) -> None:
    context = context_of(settings, table, "pipeline", activate=False)
    context.result["model_id"] = "0123456789abcdef"
    outcome = activate.run(context)
    assert (outcome.skipped, outcome.result) == (True, {"activated": False})
    assert table.pending_activations() == ()


def test_a_model_that_is_not_promoted_is_not_activated_and_the_reason_is_told(
    settings: Settings, table: JobTable
) -> None:
    context = context_of(settings, table, "pipeline")
    context.result["model_id"] = "0123456789abcdef"
    context.result["evaluation"] = {"promotion": {"promoted": False, "reason": "it is worse beyond the interval"}}
    outcome = activate.run(context)
    assert (outcome.skipped, outcome.result) == (True, {"activated": False})
    assert "worse beyond the interval" in outcome.details
    assert "/models/0123456789abcdef/activate" in outcome.details
    assert table.pending_activations() == ()


def test_a_problem_is_one_whatever_went_wrong() -> None:
    assert problem_of(InvalidError("no", field="x"), "j")["field"] == "x"
    full = problem_of(OSError(28, "No space left on device", "/data/x"), "j")
    assert full["status"] == 503
    assert "No space left on device" in full["detail"]
    assert "/data/x" in full["detail"]
    odd = problem_of(ValueError("shapes differ"), "j")
    assert odd == BrainError(odd["detail"]).problem()
    assert "ValueError: shapes differ" in odd["detail"]
    assert "/jobs/j/log" in odd["detail"]
