"""The runner with real worker processes: cancelled, killed, stopped, and two at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from brain_service.jobs.events import read_events
from brain_service.jobs.folder import JobFolder
from brain_service.jobs.runner import RunnerProcess
from brain_service.jobs.table import JobTable
from tests.jobs.recordings import write_episodes
from tests.jobs.running import gone, running_runner, wait_ended, wait_until, worker_pid


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "brain").mkdir()
    return tmp_path / "brain"


@pytest.fixture
def table(data_dir: Path) -> JobTable:
    return JobTable(data_dir / "brain.db")


@pytest.fixture
def long_job(data_dir: Path, table: JobTable) -> str:
    """A conversion that takes seconds: long enough to be met while it runs."""
    write_episodes(data_dir / "episodes", 120, 220)
    return table.create("convert", {}).job_id


def test_jobs_run_one_after_another_in_background_processes(
    data_dir: Path, table: JobTable, long_job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BRAIN_JOBS__BACKGROUND")  # as without a configuration
    second = table.create("convert", {"name": "again"}).job_id
    with running_runner(data_dir):
        pid = worker_pid(table, progress=0.01)
        assert os.sched_getscheduler(pid) == os.SCHED_IDLE
        assert psutil.Process(pid).ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
        assert os.getpgid(pid) == pid
        assert table.get(second).state == "queued"
        first_job, second_job = wait_ended(table, long_job), wait_ended(table, second)
    assert (first_job.state, second_job.state) == ("succeeded", "succeeded")
    assert first_job.finished_ns is not None
    assert second_job.started_ns is not None
    assert first_job.finished_ns < second_job.started_ns
    assert (first_job.result["dataset"]["name"], first_job.result["dataset"]["version"]) == ("episodes", "1.0.0")
    assert (data_dir / "datasets" / "again" / "1.0.0" / "features.json").is_file()


def test_events_tell_a_job_from_start_to_end(data_dir: Path, table: JobTable, long_job: str) -> None:
    with running_runner(data_dir):
        wait_ended(table, long_job)
    events = [event.data for event in read_events(JobFolder(data_dir / "jobs", long_job).events)]
    told = [(event["kind"], event.get("state") or event.get("status")) for event in events]
    assert told[0] == ("state", "running")
    assert told[-1] == ("state", "succeeded")
    assert [status for kind, status in told if kind == "stage"] == ["running", "done"]
    fractions = [event["progress"] for event in events if event["kind"] == "progress"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


@pytest.mark.parametrize("hung", [False, True], ids=["busy", "hung"])
def test_a_cancelled_job_is_over_and_its_process_group_gone(
    data_dir: Path, table: JobTable, long_job: str, hung: bool
) -> None:
    with running_runner(data_dir):
        pid = worker_pid(table, progress=0.01)
        if hung:
            os.kill(pid, signal.SIGSTOP)
        table.cancel(long_job)
        job = wait_ended(table, long_job)
        with pytest.raises(ProcessLookupError):
            os.killpg(pid, 0)
        following = table.create("train", {"dataset": "nothing"}).job_id
        assert wait_ended(table, following).state == "failed"
    assert job.state == "cancelled"
    assert job.error is None
    assert [stage.status for stage in job.stages] == ["cancelled"]
    assert not list((data_dir / "datasets").glob("episodes/1.*"))


def test_a_killed_worker_is_replaced_and_the_job_succeeds(data_dir: Path, table: JobTable, long_job: str) -> None:
    with running_runner(data_dir):
        os.kill(worker_pid(table, progress=0.01), signal.SIGKILL)
        job = wait_ended(table, long_job)
    assert (job.state, job.attempt) == ("succeeded", 2)


def test_a_worker_that_keeps_dying_fails_its_job_with_the_reason(
    data_dir: Path, table: JobTable, long_job: str
) -> None:
    with running_runner(data_dir, BRAIN_JOBS__MAX_ATTEMPTS="2"):
        for attempt in (1, 2):
            os.kill(worker_pid(table, attempt=attempt), signal.SIGKILL)
        job = wait_ended(table, long_job)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["attempts"] == 2
    assert "SIGKILL" in job.error["detail"]
    assert f"/jobs/{long_job}/log" in job.error["detail"]


def test_a_killed_runner_takes_its_worker_along_and_comes_back(
    data_dir: Path, table: JobTable, long_job: str
) -> None:
    runner = RunnerProcess(data_dir, {"BRAIN_JOBS__MAX_ATTEMPTS": "2"})
    runner.start()
    try:
        worker = worker_pid(table, progress=0.01)
        os.kill(runner.status()["pid"], signal.SIGKILL)
        wait_until(lambda: gone(worker), "the worker to die with its runner")
        job = wait_ended(table, long_job)
        assert runner.alive
        assert runner.status()["restarts"] == 1
        assert runner.status()["last_exit"] == -signal.SIGKILL
    finally:
        runner.stop()
    assert (job.state, job.attempt) == ("succeeded", 2)
    assert not runner.alive


def test_a_runner_that_dies_again_and_again_says_why_and_comes_back_when_that_is_mended(data_dir: Path) -> None:
    (data_dir / "jobs").write_text("in the way")
    runner = RunnerProcess(data_dir)
    runner.start()
    try:
        wait_until(lambda: runner.status()["restarts"] >= 2, "the runner to die twice")
        status = runner.status()
        assert not status["settled"]
        assert (status["last_exit"], status["last_reason"]) == (
            1,
            f"{data_dir / 'jobs'} is no directory; move it away",
        )
        descriptors = len(os.listdir("/proc/self/fd"))
        (data_dir / "jobs").unlink()
        wait_until(lambda: runner.status()["settled"], "the runner to live")
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 1, "a pipe for the last words, and no more"
    finally:
        runner.stop()


def test_a_killed_daemon_takes_runner_and_worker_along(data_dir: Path, table: JobTable, long_job: str) -> None:
    program = (
        "import sys, time; from pathlib import Path; from brain_service.jobs.runner import RunnerProcess\n"
        "runner = RunnerProcess(Path(sys.argv[1])); runner.start(); print(runner.status()['pid'], flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(data_dir)], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        runner = int(daemon.stdout.readline())
        worker = worker_pid(table, progress=0.01)
        daemon.kill()
    wait_until(lambda: gone(runner) and gone(worker), "runner and worker to die with the daemon")
    job = table.get(long_job)
    assert (job.state, job.attempt) == ("queued", 0)


def test_stopping_puts_the_running_job_back_uncounted(data_dir: Path, table: JobTable, long_job: str) -> None:
    with running_runner(data_dir) as runner:
        worker = worker_pid(table, progress=0.01)
        runner.terminate()
        assert runner.wait(30) == 0
        assert gone(worker)
    job = table.get(long_job)
    assert (job.state, job.attempt) == ("queued", 0)
    assert [stage.status for stage in job.stages] == ["pending"]


def test_a_second_runner_waits_until_the_first_is_gone(data_dir: Path, table: JobTable, long_job: str) -> None:
    with running_runner(data_dir) as first:
        worker_pid(table, progress=0.01)
        with running_runner(data_dir):
            # The second must take the running job neither as its own nor as an orphan.
            second_job = table.create("convert", {"name": "again"}).job_id
            os.kill(first.pid, signal.SIGKILL)
            assert wait_ended(table, long_job).attempt == 2
            assert wait_ended(table, second_job).attempt == 1


def test_a_failed_job_shows_a_problem_and_keeps_the_traceback_in_its_log(data_dir: Path, table: JobTable) -> None:
    job_id = table.create("convert", {}).job_id
    with running_runner(data_dir):
        job = wait_ended(table, job_id)
    assert job.state == "failed"
    assert job.error is not None
    assert (job.error["status"], job.error["type"]) == (422, "urn:continuon-brain:problem:invalid")
    assert "Traceback" not in str(job.to_json())
    assert [(stage.status, stage.details) for stage in job.stages] == [("failed", job.error["detail"])]
    assert "Traceback" in JobFolder(data_dir / "jobs", job_id).log.read_text()
    assert job.attempt == 1


def test_a_data_directory_that_cannot_be_written_fails_the_job_clearly(data_dir: Path, table: JobTable) -> None:
    write_episodes(data_dir / "episodes", 2, 3)
    (data_dir / "datasets").write_text("in the way")
    job_id = table.create("convert", {}).job_id
    with running_runner(data_dir):
        job = wait_ended(table, job_id)
    assert job.error is not None
    assert job.error["status"] == 503
    assert "check permissions and free space" in job.error["detail"]


def test_old_jobs_and_their_folders_go(data_dir: Path, table: JobTable) -> None:
    jobs = [table.create("convert", {}).job_id for _ in range(4)]
    with running_runner(data_dir, BRAIN_JOBS__KEEP_FINISHED="2"):
        wait_until(lambda: {job.job_id for job in table.list().jobs} == set(jobs[2:]), "old jobs to be forgotten")
        wait_until(
            lambda: {path.name for path in (data_dir / "jobs").iterdir() if path.is_dir()} == set(jobs[2:]),
            "their folders to go",
        )


def test_a_runner_with_a_wrong_setting_says_so_and_exits(data_dir: Path) -> None:
    with running_runner(data_dir, BRAIN_JOBS__MAX_ATTEMPTS="none") as runner:
        assert runner.wait(30) == 1
    assert "jobs.max_attempts" in (data_dir / "runner.log").read_text()
