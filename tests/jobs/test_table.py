"""The job table: every job has one state and one owner, whatever happens in between."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from brain_service.errors import (
    BrainError,
    ConfigError,
    ConflictError,
    CorruptDataError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from brain_service.jobs.job import Job, StageReport
from brain_service.jobs.table import JobTable


@pytest.fixture
def table(tmp_path: Path) -> JobTable:
    return JobTable(tmp_path / "brain.db")


def claim(table: JobTable) -> Job:
    job = table.claim_next()
    assert job is not None
    return job


def test_a_new_job_shows_its_checked_parameters_and_survives_reopening(tmp_path: Path) -> None:
    table = JobTable(tmp_path / "brain.db")
    created = table.create("train", {"steps": 5})
    table.close()
    found = JobTable(tmp_path / "brain.db").get(created.job_id)
    assert found == created
    assert (found.state, found.progress, found.attempt, found.error) == ("queued", 0.0, 0, None)
    assert found.params["steps"] == 5
    assert found.params["preset"] == "development"


def test_the_json_form_has_the_documented_members(table: JobTable) -> None:
    document = table.create("convert", {}).to_json()
    assert {
        *("job_id", "kind", "state", "progress", "stages", "result", "error"),
        *("created_ns", "started_ns", "finished_ns", "attempt", "params"),
    } <= set(document)


def test_jobs_are_claimed_in_the_order_of_their_creation(table: JobTable) -> None:
    created = [table.create("convert", {}).job_id for _ in range(3)]
    claimed = [claim(table) for _ in range(3)]
    assert [job.job_id for job in claimed] == created
    assert all(job.state == "running" and job.attempt == 1 for job in claimed)
    assert table.claim_next() is None


def test_concurrent_claims_never_hand_out_one_job_twice(tmp_path: Path) -> None:
    # A table object a thread is a connection each, as in separate processes.
    created = {JobTable(tmp_path / "brain.db").create("convert", {}).job_id for _ in range(40)}
    claimed: list[str] = []
    start = threading.Barrier(4)

    def work() -> None:
        mine = JobTable(tmp_path / "brain.db")
        start.wait()
        while (job := mine.claim_next()) is not None:
            claimed.append(job.job_id)
        mine.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == 40
    assert set(claimed) == created


def test_one_table_object_serves_many_threads(table: JobTable) -> None:
    failures: list[BrainError] = []

    def work() -> None:
        try:
            for _ in range(20):
                job_id = table.create("convert", {}).job_id
                table.cancel(job_id)
                table.list(5)
        except BrainError as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(table.list(1000, state="cancelled").jobs) == 80


def test_progress_never_falls_and_results_grow(table: JobTable) -> None:
    job_id = table.create("train", {}).job_id
    claim(table)
    table.progress(job_id, 0.5, [StageReport("convert", "done", "3 episodes")], {"dataset": {"name": "episodes"}})
    table.progress(job_id, 0.2)
    table.progress(job_id, 7.0)
    job = table.get(job_id)
    assert job.progress == 1.0
    assert job.result == {"dataset": {"name": "episodes"}}
    assert job.stages == (StageReport("convert", "done", "3 episodes"),)


def test_a_late_report_does_not_touch_an_ended_job(table: JobTable) -> None:
    job_id = table.create("train", {}).job_id
    claim(table)
    ended = table.finish(job_id, "failed", error=InvalidError("no").problem())
    table.progress(job_id, 0.9, [], {"late": True})
    assert table.get(job_id) == ended
    with pytest.raises(ConflictError, match="failed, not running"):
        table.finish(job_id, "succeeded")


def test_ending_a_job_settles_its_running_stage(table: JobTable) -> None:
    job_id = table.create("train", {}).job_id
    claim(table)
    table.progress(job_id, 0.5, [StageReport("convert", "done"), StageReport("train", "running")])
    job = table.finish(job_id, "cancelled")
    assert [stage.status for stage in job.stages] == ["done", "cancelled"]
    assert job.finished_ns is not None


def test_cancelling_queued_running_and_ended_jobs(table: JobTable) -> None:
    queued, running = table.create("convert", {}), table.create("convert", {})
    assert table.cancel(queued.job_id).state == "cancelled"
    assert table.cancel(queued.job_id).state == "cancelled"
    assert claim(table).job_id == running.job_id
    asked = table.cancel(running.job_id)
    assert (asked.state, asked.cancel_requested) == ("running", True)
    table.finish(running.job_id, "succeeded")
    with pytest.raises(ConflictError, match="has succeeded already"):
        table.cancel(running.job_id)
    with pytest.raises(NotFoundError, match="GET /jobs"):
        table.cancel("20200101T000000-00000000")


def test_a_lost_job_is_requeued_with_its_finished_stages_until_its_attempts_are_used_up(table: JobTable) -> None:
    job_id = table.create("train", {}).job_id
    for attempt in (1, 2):
        assert claim(table).attempt == attempt
        table.progress(job_id, 0.1 * attempt, [StageReport("convert", "done"), StageReport("train", "running")])
        (again,) = table.requeue_orphans(3)
        assert again.state == "queued"
        assert [stage.status for stage in again.stages] == ["done", "pending"]
    assert claim(table).attempt == 3
    failed = table.requeue(job_id, "was killed by SIGKILL", 3)
    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["attempts"] == 3
    assert "killed by SIGKILL" in failed.error["detail"]
    assert f"/jobs/{job_id}/log" in failed.error["detail"]


def test_a_lost_job_that_was_being_cancelled_is_cancelled(table: JobTable) -> None:
    job_id = table.create("train", {}).job_id
    claim(table)
    table.cancel(job_id)
    assert table.requeue_orphans(3)[0].state == "cancelled"
    assert table.get(job_id).cancel_requested is False


def test_a_job_released_by_a_stopping_runner_has_not_used_an_attempt(table: JobTable) -> None:
    job_id = table.create("train", {}).job_id
    for _ in range(10):
        assert claim(table).attempt == 1
        table.release(job_id)


def test_an_idempotency_key_gives_the_first_job_again_and_refuses_another_body(table: JobTable) -> None:
    first = table.create("train", {"steps": 5}, idempotency_key="k")
    assert table.create("train", {"steps": 5, "preset": "development"}, idempotency_key="k") == first
    with pytest.raises(InvalidError, match="another body") as caught:
        table.create("train", {"steps": 6}, idempotency_key="k")
    assert caught.value.field == "Idempotency-Key"
    assert len(table.list().jobs) == 1


@pytest.mark.parametrize(
    ("kind", "params", "field"),
    [
        ("dance", {}, "kind"),
        ("train", {"preset": "huge"}, "preset"),
        ("pipeline", {"stepz": 1}, "stepz"),
        ("convert", {"name": "../up"}, "name"),
    ],
)
def test_what_cannot_run_is_never_queued(
    table: JobTable, kind: str, params: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        table.create(kind, params)
    assert caught.value.field == field
    assert table.list().jobs == ()


def test_pages_hold_every_job_once_newest_first(table: JobTable) -> None:
    created = [table.create("convert" if n % 2 else "train", {}).job_id for n in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        page, cursor = table.list(3, cursor)
        seen += [job.job_id for job in page]
        if cursor is None:
            break
    assert seen == created[::-1]
    assert [job.job_id for job in table.list(kind="train").jobs] == created[::-2]
    assert table.list(7).next_cursor is None
    assert table.latest(("train", "pipeline")) == table.get(created[6])
    assert table.latest(("export",)) is None


@pytest.mark.parametrize("wrong", [{"cursor": "x"}, {"cursor": "-1"}, {"kind": "dance"}, {"state": "lost"}])
def test_a_wrong_filter_is_named(table: JobTable, wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidError) as caught:
        table.list(10, **wrong)
    assert caught.value.field == next(iter(wrong))


def test_old_jobs_are_forgotten_and_live_ones_kept(table: JobTable) -> None:
    ended = [table.create("convert", {}).job_id for _ in range(4)]
    for job_id in ended:
        table.cancel(job_id)
    waiting = table.create("convert", {}).job_id
    assert set(table.prune(1)) == set(ended[:3])
    assert {job.job_id for job in table.list().jobs} == {ended[3], waiting}


def test_a_file_that_is_no_database_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "brain.db").write_bytes(b"not a database, " * 100)
    with pytest.raises(CorruptDataError, match="restart the daemon"):
        JobTable(tmp_path / "brain.db")


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    JobTable(tmp_path / "brain.db").close()
    with sqlite3.connect(tmp_path / "brain.db") as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(ConfigError, match="schema 99"):
        JobTable(tmp_path / "brain.db")


def test_a_database_that_cannot_be_opened_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot open"):
        JobTable(tmp_path / "file" / "brain.db")


def test_a_full_medium_is_unavailable_and_loses_nothing(tmp_path: Path) -> None:
    table = JobTable(tmp_path / "brain.db")
    first = table.create("convert", {})
    with table._database.transaction() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(UnavailableError, match="free space"):
        for _ in range(200):
            table.create("convert", {})
    assert table.get(first.job_id) == first
    table.cancel(first.job_id)


def test_no_answered_job_is_lost_to_a_kill(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from brain_service.jobs.table import JobTable\n"
        "table = JobTable(Path(sys.argv[1]))\n"
        "while True:\n"
        "    print(table.create('convert', {}).job_id, flush=True); table.claim_next()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "brain.db")]
    answered: list[str] = []
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            answered += [writer.stdout.readline().strip() for _ in range(20)]
            writer.kill()
            answered += [line.strip() for line in writer.stdout if line.endswith("\n")]
    table = JobTable(tmp_path / "brain.db")
    states = {job.job_id: job.state for job in table.list(10_000).jobs}
    assert set(answered) <= set(states)
    # At most the job that was being created at each kill has not been answered.
    assert len(states) <= len(answered) + 3
    assert set(states.values()) <= {"queued", "running"}
    assert len(table.requeue_orphans(3)) == list(states.values()).count("running")


class JobLife(RuleBasedStateMachine):
    """Any order of calls against a dictionary of expected states."""

    jobs = Bundle("jobs")
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.table = JobTable(self.folder / f"{id(self)}-{len(list(self.folder.iterdir()))}.db")
        self.states: dict[str, str] = {}

    def teardown(self) -> None:
        self.table.close()

    @rule(target=jobs, kind=st.sampled_from(["convert", "train"]))
    def create(self, kind: str) -> str:
        job_id = self.table.create(kind, {}).job_id
        self.states[job_id] = "queued"
        return job_id

    @rule()
    def claim(self) -> None:
        job = self.table.claim_next()
        waiting = [job_id for job_id, state in self.states.items() if state == "queued"]
        assert (job.job_id if job else None) == (waiting[0] if waiting else None)
        if job is not None:
            self.states[job.job_id] = "running"

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        if self.states[job_id] in ("succeeded", "failed"):
            with pytest.raises(ConflictError):
                self.table.cancel(job_id)
            return
        self.table.cancel(job_id)
        if self.states[job_id] in ("running", "cancelling"):
            self.states[job_id] = "cancelling"
        else:
            self.states[job_id] = "cancelled"

    @rule(job_id=jobs, state=st.sampled_from(["succeeded", "failed"]))
    def finish(self, job_id: str, state: str) -> None:
        if self.states[job_id] in ("running", "cancelling"):
            assert self.table.finish(job_id, state).state == state  # type: ignore[arg-type]
            self.states[job_id] = state
        else:
            with pytest.raises(ConflictError):
                self.table.finish(job_id, "succeeded")

    @rule()
    def restart(self) -> None:
        before = {job.job_id: job.attempt for job, _ in self.table.running()}
        for job in self.table.requeue_orphans(2):
            lost = "cancelled" if self.states[job.job_id] == "cancelling" else "queued"
            expected = "failed" if lost == "queued" and before[job.job_id] >= 2 else lost
            assert job.state == expected
            self.states[job.job_id] = expected

    @invariant()
    def every_job_is_where_it_belongs(self) -> None:
        found = {job.job_id: job for job in self.table.list(1000).jobs}
        assert set(found) == set(self.states)
        for job_id, state in self.states.items():
            assert found[job_id].state == ("running" if state == "cancelling" else state)
            assert found[job_id].cancel_requested == (state == "cancelling")
            assert (found[job_id].finished_ns is None) == (state in ("queued", "running", "cancelling"))


def test_any_order_of_calls_leaves_every_job_in_its_expected_state(tmp_path: Path) -> None:
    JobLife.folder = tmp_path
    run_state_machine_as_test(JobLife, settings=settings(max_examples=20, stateful_step_count=25))


def test_of_jobs_that_wait_the_highest_priority_starts_first(table: JobTable) -> None:
    wanted = [table.create("convert", {"priority": p}).job_id for p in ("low", "normal", "high", "high", "normal")]
    claimed = [job.job_id for job in iter(table.claim_next, None) if job is not None]
    assert claimed == [wanted[index] for index in (2, 3, 1, 4, 0)]
