"""The whole loop as jobs, for real: recordings in, a served model out, through kills."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from brain_service.errors import CorruptDataError
from brain_service.export.bundle import Bundle
from brain_service.jobs.context import JobContext
from brain_service.jobs.events import EventLog, read_events
from brain_service.jobs.folder import JobFolder
from brain_service.jobs.job import Job
from brain_service.jobs.stages import canary
from brain_service.jobs.table import JobTable
from brain_service.settings import Settings
from tests.jobs.recordings import write_episodes
from tests.jobs.running import running_runner, wait_ended, wait_until, worker_pid

pytestmark = pytest.mark.slow

SMALL = {"steps": 30, "batch_size": 4, "sequence_length": 16, "learning_rate": 1e-3}


@contextlib.contextmanager
def answering_daemon(table: JobTable) -> Iterator[list[str]]:
    """Accept every activation, as a daemon whose router is content would; yields the model ids."""
    activated: list[str] = []
    done = threading.Event()

    def answer() -> None:
        while not done.wait(0.05):
            for request in table.pending_activations():
                activated.append(request.model_id)
                table.resolve_activation(request.activation_id, True, "")

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield activated
    finally:
        done.set()
        thread.join()


@dataclass(frozen=True)
class Learned:
    """A data directory in which a pipeline ran, the job as it ended, and what it asked to activate."""

    data_dir: Path
    table: JobTable
    job: Job
    activated: list[str]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    data_dir = tmp_path_factory.mktemp("brain")
    write_episodes(data_dir / "episodes", 10, 40)
    table = JobTable(data_dir / "brain.db")
    job_id = table.create("pipeline", SMALL).job_id
    with answering_daemon(table) as activated, running_runner(data_dir):
        job = wait_ended(table, job_id)
    return Learned(data_dir, table, job, activated)


def test_the_pipeline_turns_recordings_into_an_activated_bundle(learned: Learned) -> None:
    job = learned.job
    assert job.state == "succeeded", job.error
    assert {stage.name: stage.status for stage in job.stages} == dict.fromkeys(
        ("health", "inventory", "convert", "train", "evaluate", "export", "canary", "activate"), "done"
    )
    assert {"model_id", "dataset", "train", "evaluation", "activated"} <= set(job.result)
    assert job.result["dataset"]["splits"] == {"train": 8, "val": 2}
    assert job.result["train"]["steps"] == SMALL["steps"]
    assert job.result["activated"] is True
    assert learned.activated == [job.result["model_id"]]
    bundle = Bundle.open(learned.data_dir / "models" / job.result["model_id"])
    assert bundle.manifest.source_run == job.job_id
    assert bundle.manifest.evaluation == job.result["evaluation"]


def test_the_bundle_was_compared_with_its_checkpoint_on_a_held_out_episode(learned: Learned) -> None:
    canary = learned.job.result["canary"]
    assert canary["source"].startswith("val episode ")
    assert canary["difference"] <= canary["bound"]
    assert canary["steps"] == 40
    assert canary["differences"].keys() == {"jax", "onnx"}
    assert learned.job.result["export"]["forms"] == ["jax", "onnx"]
    assert learned.job.result["export"]["parity"].keys() == {"jax", "onnx", "switch"}


def test_progress_and_metrics_were_told_in_order(learned: Learned) -> None:
    events = [event.data for event in read_events(JobFolder(learned.data_dir / "jobs", learned.job.job_id).events)]
    fractions = [event["progress"] for event in events if event["kind"] == "progress"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    losses = [event["loss"] for event in events if event["kind"] == "metrics" and "loss" in event]
    assert losses
    assert all(isinstance(loss, float) for loss in losses)


def test_the_commands_in_the_report_are_commands_of_the_program(learned: Learned) -> None:
    commands = {stage.name: shlex.split(stage.command) for stage in learned.job.stages if stage.command}
    ours = {name: words[1:] for name, words in commands.items() if words[0] == "brain"}
    assert set(ours) == {"convert", "train", "evaluate", "export"}
    for name, words in ours.items():
        help_text = subprocess.run(
            [sys.executable, "-m", "brain_service", words[0], "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert words[0] == name
        assert all(word in help_text for word in words if word.startswith("--"))


def test_evaluation_and_export_take_the_newest_run_by_themselves(learned: Learned) -> None:
    models = learned.data_dir / "models"
    params = models / learned.job.result["model_id"] / "params.safetensors"
    whole = params.read_bytes()
    params.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    jobs = [learned.table.create(kind, {}).job_id for kind in ("evaluate", "export")]
    with running_runner(learned.data_dir):
        evaluated, exported = (wait_ended(learned.table, job_id) for job_id in jobs)
    assert evaluated.state == "succeeded", evaluated.error
    assert evaluated.result["evaluation"] == learned.job.result["evaluation"]
    assert exported.state == "succeeded", exported.error
    # Content-addressed: the same checkpoint is the same model, and its damaged bundle was replaced.
    assert exported.result["model_id"] == learned.job.result["model_id"]
    assert params.read_bytes() == whole
    assert exported.result["canary"]["source"] == "the golden sequence"


def test_zero_steps_give_the_untrained_model_which_is_no_canary_for_the_trained(learned: Learned) -> None:
    active = learned.data_dir / "models" / "active"
    active.symlink_to(learned.job.result["model_id"])
    job_id = learned.table.create("pipeline", {"steps": 0, "activate": False}).job_id
    with running_runner(learned.data_dir):
        job = wait_ended(learned.table, job_id)
    active.unlink()
    assert job.state == "succeeded", job.error
    promotion = job.result["evaluation"]["promotion"]
    assert promotion["active"] == learned.job.result["model_id"]
    assert (promotion["episodes"], promotion["steps"], promotion["left_out"]) == (2, 80, 0)
    assert promotion["active_error"] == pytest.approx(learned.job.result["evaluation"]["relative_rmse"] ** 2)
    report = JobFolder(learned.data_dir / "jobs", job_id).path / "evaluation.html"
    assert promotion["active"] in report.read_text()
    assert job.result["train"]["steps"] == 0
    assert job.result["activated"] is False
    assert job.result["model_id"] != learned.job.result["model_id"]

    # What would be served is the untrained model, what was trained is the other: the canary must see it.
    swapped = replace(learned.job, result={**learned.job.result, "model_id": job.result["model_id"]})
    settings = Settings(data_dir=learned.data_dir)
    with (
        EventLog(learned.data_dir / "events") as events,
        pytest.raises(CorruptDataError, match="its bound is") as no,
    ):
        canary.run(JobContext(settings, learned.table, swapped, events))
    assert no.value.problem()["model_id"] == job.result["model_id"]


def test_an_unknown_run_fails_with_the_runs_that_are(learned: Learned) -> None:
    job_id = learned.table.create("evaluate", {"checkpoint": "nothing"}).job_id
    with running_runner(learned.data_dir):
        job = wait_ended(learned.table, job_id)
    assert job.error is not None
    assert job.error["status"] == 404
    assert learned.job.job_id in job.error["detail"]


def test_a_pipeline_goes_on_where_it_stood_after_kills_of_its_worker_and_of_the_runner(learned: Learned) -> None:
    table, data_dir = learned.table, learned.data_dir
    steps = 400
    job_id = table.create("pipeline", {**SMALL, "steps": steps, "checkpoint_every": 20}).job_id
    checkpoints = data_dir / "checkpoints" / job_id

    def sealed() -> int:
        # Its hashes are written last: a step without them counts for nothing.
        return max((int(path.parent.name) for path in checkpoints.glob("*/sha256.json")), default=0)

    def stage() -> str:
        return next((report.name for report in table.get(job_id).stages if report.status == "running"), "")

    with answering_daemon(table) as activated:
        with running_runner(data_dir) as runner:
            worker = worker_pid(table)
            wait_until(lambda: sealed() > 0, "a first checkpoint")
            os.kill(worker, signal.SIGKILL)
            reached = sealed()
            worker_pid(table, attempt=2)
            wait_until(lambda: sealed() > reached, "the second worker to get further")
            wait_until(lambda: stage() in ("evaluate", "export", "canary"), "the training to be over")
            runner.kill()
        with running_runner(data_dir):
            job = wait_ended(table, job_id)
    assert (job.state, job.attempt) == ("succeeded", 3), job.error
    assert {report.status for report in job.stages} == {"done"}
    assert job.result["train"]["steps"] == steps
    assert job.result["train"]["resumed_from"] >= reached > 0
    assert activated == [job.result["model_id"]]
    events = [event.data for event in read_events(JobFolder(data_dir / "jobs", job_id).events)]
    begun = [event["name"] for event in events if event["kind"] == "stage" and event["status"] == "running"]
    # What was done before a kill is passed over; what was killed begins again, the training at its checkpoint.
    assert [begun.count(name) for name in ("health", "inventory", "convert", "train")] == [1, 1, 1, 2]
    assert sum(begun.count(name) for name in ("evaluate", "export", "canary")) == 4
    resumed = [event["step"] for event in events if event["kind"] == "metrics" and "step" in event]
    assert resumed[-1] == steps


def test_a_sanity_check_is_a_job_with_its_report(learned: Learned) -> None:
    asked = {"dataset": "episodes", "max_steps": 5, "sequence_length": 16}
    good, bad = (learned.table.create("sanity-check", asked | more).job_id for more in ({}, {"obs_dim": 7}))
    with running_runner(learned.data_dir):
        passed, failed = wait_ended(learned.table, good), wait_ended(learned.table, bad)
    assert passed.state == "succeeded", passed.error
    assert passed.result["sanity_check"]["passed"] is True
    assert failed.state == "failed"
    assert failed.error is not None and "--obs-dim is 7, the dataset has 2" in failed.error["detail"]
    assert failed.error["report"]["passed"] is False


def test_a_training_is_cancelled_in_the_middle(tmp_path: Path) -> None:
    write_episodes(tmp_path / "episodes", 10, 40)
    table = JobTable(tmp_path / "brain.db")
    job_id = table.create("train", {**SMALL, "steps": 1_000_000}).job_id
    with running_runner(tmp_path):
        worker = worker_pid(table)
        wait_until(
            lambda: "train" in [s.name for s in table.get(job_id).stages if s.status == "running"], "training"
        )
        table.cancel(job_id)
        job = wait_ended(table, job_id)
        with pytest.raises(ProcessLookupError):
            os.killpg(worker, 0)
    assert job.state == "cancelled"
    assert [stage.status for stage in job.stages if stage.name == "train"] == ["cancelled"]
