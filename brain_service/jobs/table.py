"""The job table in brain.db: what was asked for, what runs, how it ended; and the activations jobs ask for.

Three processes share it: the daemon creates and cancels, the runner claims and requeues, a worker reports.
Every change is one transaction, so that a kill at any point leaves a job in one state that somebody owns.
"""

import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from brain_service.database import Database
from brain_service.errors import BrainError, ConflictError, InvalidError, NotFoundError
from brain_service.jobs.database_file import DatabaseFile
from brain_service.jobs.job import STATES, Activation, EndState, Job, JobPage, Lane, StageReport
from brain_service.jobs.kinds import KINDS, parse_params
from brain_service.jobs.rows import (
    BY_PRIORITY,
    dump,
    end,
    fetch,
    fetch_running,
    requeue_row,
    same_request,
    to_job,
)
from brain_service.jobs.waits import park_row, wake

__all__ = ["JobTable"]

ACTIVATION_POLL_INTERVAL_S = 0.1


class JobTable:
    """Jobs and activations in a SQLite file. Thread-safe; calls block, so keep them off an event loop."""

    def __init__(self, database: Path, *, lazily: bool = False) -> None:
        """Open or create the file; `lazily` at the first call, and again at every call until that works.

        Lazily, and where the file was moved away since, a call on a file that does not open raises
        UnavailableError with the reason.

        Raises:
            ConfigError: it cannot be opened, or a newer version of this program wrote it.
            CorruptDataError: it is no intact database.
        """
        self._file = DatabaseFile(database)
        if not lazily:
            self._file.open()

    def close(self) -> None:
        """Close the database."""
        self._file.close()

    def problem(self) -> str:
        """Return why jobs cannot be read now, or nothing where they can."""
        try:
            self._database.read("SELECT 1 FROM jobs LIMIT 1")
        except BrainError as error:
            return error.detail
        return ""

    @property
    def _database(self) -> Database:
        return self._file.current()

    def create(
        self,
        kind: str,
        params: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        trainer: Mapping[str, Any] | None = None,
    ) -> Job:
        """Queue a job, durably; with a key that was used before for the same body, return that first job.

        `trainer` is kept with it as it is (`Job.trainer`).

        Raises:
            InvalidError: unknown kind or key, a wrong value, or an idempotency key used for another body.
        """
        checked = orjson.dumps(
            parse_params(kind, params).model_dump(mode="json"), option=orjson.OPT_SORT_KEYS
        ).decode()
        now_ns = time.time_ns()
        moment = datetime.fromtimestamp(now_ns / 1e9, UTC)
        with self._database.transaction(durable=True) as connection:
            if idempotency_key is not None:
                row = connection.execute(
                    "SELECT * FROM jobs WHERE idempotency_key = ?", (idempotency_key,)
                ).fetchone()
                if row is not None:
                    return same_request(row, kind, checked)
            row = connection.execute(
                "INSERT INTO jobs (job_id, kind, params, idempotency_key, created_ns, trainer)"
                " VALUES (?, ?, ?, ?, ?, ?) RETURNING *",
                (
                    *(f"{moment:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}", kind, checked, idempotency_key, now_ns),
                    None if trainer is None else dump(trainer),
                ),
            ).fetchone()
        return to_job(row)

    def get(self, job_id: str) -> Job:
        """Return one job.

        Raises:
            NotFoundError: no such job.
        """
        rows = self._database.read("SELECT * FROM jobs WHERE job_id = ?", (job_id,))
        if not rows:
            raise NotFoundError(f"no job {job_id!r}; GET /jobs lists them")
        return to_job(rows[0])

    def latest(self, kinds: Sequence[str]) -> Job | None:
        """Return the job of these kinds that was created last, dry runs aside, or None."""
        marks = ", ".join("?" for _ in kinds)
        # Only question marks are put into the statement.
        rows = self._database.read(
            f"SELECT * FROM jobs WHERE kind IN ({marks})"  # noqa: S608
            " AND NOT ifnull(json_extract(params, '$.dry_run'), 0) ORDER BY seq DESC LIMIT 1",
            tuple(kinds),
        )
        return to_job(rows[0]) if rows else None

    def claim_next(self, lane: Lane = "work", ending: Collection[str] = ()) -> Job | None:
        """Take a lane's next job for this caller alone: a parked one that is due, else a queued one.

        Of queued ones the highest priority goes first, then the oldest. Only the start of a queued job counts as
        an attempt. Parked ones in `ending` are left: their last worker has not gone yet. None when none waits.
        """
        with self._database.transaction(durable=True) as connection:
            woken = wake(connection, lane, ending)
            if woken is not None:
                return woken
            kinds = [kind for kind, described in KINDS.items() if described.lane == lane]
            marks = ", ".join("?" for _ in kinds)
            # Only question marks and a constant are put into the statement.
            row = connection.execute(
                "UPDATE jobs SET state = 'running', attempt = attempt + 1,"  # noqa: S608
                " started_ns = ifnull(started_ns, ?)"
                " WHERE seq = (SELECT seq FROM jobs WHERE state = 'queued'"
                f" AND kind IN ({marks}) ORDER BY {BY_PRIORITY}, seq LIMIT 1) RETURNING *",
                (time.time_ns(), *kinds),
            ).fetchone()
        return to_job(row) if row is not None else None

    def park(self, job_id: str, lane: Lane, wait_s: float) -> None:
        """Have a running job go on in `lane` after `wait_s` seconds, durably; until then nobody works on it.

        Raises:
            NotFoundError: no such job.
            ConflictError: it is not running.
        """
        with self._database.transaction(durable=True) as connection:
            park_row(connection, fetch_running(connection, job_id), lane, wait_s)

    def unfinished(self) -> frozenset[str]:
        """Return the ids of the jobs that wait or run, parked ones too."""
        rows = self._database.read("SELECT job_id FROM jobs WHERE state IN ('queued', 'running')")
        return frozenset(row["job_id"] for row in rows)

    def is_parked(self, job_id: str) -> bool:
        """Tell whether a job waits to be woken."""
        return bool(self._database.read("SELECT 1 FROM waits WHERE job_id = ?", (job_id,)))

    def set_process(self, job_id: str, identity: str) -> None:
        """Note which process group works on a running job (`processes.identify`), to find it after a crash."""
        with self._database.transaction(durable=True) as connection:
            connection.execute("UPDATE jobs SET process = ? WHERE job_id = ?", (identity, job_id))

    def set_trainer(self, job_id: str, trainer: Mapping[str, Any]) -> Job:
        """Keep who trains with a job that was queued before that was known; return the job."""
        with self._database.transaction(durable=True) as connection:
            connection.execute("UPDATE jobs SET trainer = ? WHERE job_id = ?", (dump(trainer), job_id))
            return fetch(connection, job_id)

    def progress(
        self,
        job_id: str,
        fraction: float,
        stages: Sequence[StageReport] | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> None:
        """Report a running job: `fraction` in 0..1 (less than before is ignored), stages and partial result.

        The result of a finished stage is durable: a restarted job reads it and goes on after that stage. A job
        that is not running any more is left as it is.
        """
        with self._database.transaction(durable=result is not None) as connection:
            connection.execute(
                "UPDATE jobs SET progress = max(progress, min(?, 1.0)), stages = ifnull(?, stages),"
                " result = ifnull(?, result) WHERE job_id = ? AND state = 'running'",
                (
                    fraction,
                    None if stages is None else dump(stages),
                    None if result is None else dump(result),
                    job_id,
                ),
            )

    def finish(
        self,
        job_id: str,
        state: EndState,
        *,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> Job:
        """End a running job, durably; its pending activations are withdrawn.

        Raises:
            NotFoundError: no such job.
            ConflictError: it is not running.
        """
        with self._database.transaction(durable=True) as connection:
            return end(connection, fetch_running(connection, job_id), state, result=result, error=error)

    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once, or ask the runner to stop a running one; repeating it is harmless.

        Raises:
            NotFoundError: no such job.
            ConflictError: it has succeeded or failed already.
        """
        with self._database.transaction(durable=True) as connection:
            job = fetch(connection, job_id)
            if job.state == "queued":
                return end(connection, job, "cancelled")
            if job.state == "running":
                connection.execute("UPDATE jobs SET cancel_requested = 1 WHERE job_id = ?", (job_id,))
                connection.execute("UPDATE waits SET wake_ns = 0 WHERE job_id = ?", (job_id,))
                return fetch(connection, job_id)
            if job.state != "cancelled":
                raise ConflictError(f"job {job_id} has {job.state} already; there is nothing to cancel")
            return job

    def release(self, job_id: str) -> None:
        """Put a running job back because the runner stops: the attempt does not count against it."""
        with self._database.transaction(durable=True) as connection:
            requeue_row(connection, fetch(connection, job_id))
            connection.execute("UPDATE jobs SET attempt = max(attempt - 1, 0) WHERE job_id = ?", (job_id,))

    def requeue(self, job_id: str, reason: str, max_attempts: int) -> Job:
        """Put a running job whose process died back in the queue; fail it when its attempts are used up.

        One that was asked to stop is cancelled. `reason` says how the process died ("was killed by SIGKILL").

        Raises:
            NotFoundError: no such job.
            ConflictError: it is not running.
        """
        with self._database.transaction(durable=True) as connection:
            job = fetch_running(connection, job_id)
            if job.cancel_requested:
                return end(connection, job, "cancelled")
            if job.attempt >= max_attempts:
                problem = BrainError(
                    f"the job's process {reason}, at attempt {job.attempt} of {max_attempts}; its last words "
                    f"are in GET /jobs/{job_id}/log; a smaller preset or batch_size needs less memory",
                    attempts=job.attempt,
                ).problem()
                return end(connection, job, "failed", error=problem)
            requeue_row(connection, job)
            return fetch(connection, job_id)

    def running(self) -> tuple[tuple[Job, str | None], ...]:
        """Return the running jobs, oldest first, each with the identity of its process if one was noted.

        A parked one is not among them.
        """
        rows = self._database.read(
            "SELECT * FROM jobs WHERE state = 'running' AND job_id NOT IN (SELECT job_id FROM waits) ORDER BY seq"
        )
        return tuple((to_job(row), row["process"]) for row in rows)

    def interrupted_looks(self) -> tuple[str, ...]:
        """Return the processes of parked jobs that were woken and had not parked them again."""
        rows = self._database.read(
            "SELECT process FROM jobs JOIN waits USING (job_id) WHERE state = 'running' AND process IS NOT NULL"
        )
        return tuple(row["process"] for row in rows)

    def wake_all(self, lane: Lane) -> None:
        """Make all parked jobs of a lane due. Call it where no job can run: at the start of the only runner."""
        with self._database.transaction(durable=True) as connection:
            connection.execute("UPDATE waits SET wake_ns = 0 WHERE lane = ?", (lane,))

    def requeue_orphans(self, max_attempts: int) -> tuple[Job, ...]:
        """Requeue every running job. Call it where no job can run: at the start of the only runner.

        Their processes must be gone (`processes.end_group`); returns the jobs as they are afterwards.
        """
        reason = "was lost when the job runner or the machine went down"
        return tuple(self.requeue(job.job_id, reason, max_attempts) for job, _ in self.running())

    def prune(self, keep_finished: int) -> tuple[str, ...]:
        """Forget all but the newest `keep_finished` ended jobs; returns the ids that are gone."""
        with self._database.transaction() as connection:
            rows = connection.execute(
                "DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs WHERE state NOT IN ('queued', 'running')"
                " ORDER BY seq DESC LIMIT -1 OFFSET ?) RETURNING job_id",
                (keep_finished,),
            ).fetchall()
        return tuple(row["job_id"] for row in rows)

    def request_activation(self, model_id: str, job_id: str) -> int:
        """Ask the daemon to serve a model; a request of the same job that still waits is returned again."""
        with self._database.transaction(durable=True) as connection:
            row = connection.execute(
                "SELECT activation_id FROM activations WHERE job_id = ? AND model_id = ? AND state = 'pending'",
                (job_id, model_id),
            ).fetchone()
            if row is None:
                row = connection.execute(
                    "INSERT INTO activations (job_id, model_id) VALUES (?, ?) RETURNING activation_id",
                    (job_id, model_id),
                ).fetchone()
        return int(row["activation_id"])

    def pending_activations(self) -> tuple[Activation, ...]:
        """Return the activations that wait for the daemon, oldest first."""
        rows = self._database.read("SELECT * FROM activations WHERE state = 'pending' ORDER BY activation_id")
        return tuple(Activation(**row) for row in rows)

    def resolve_activation(self, activation_id: int, ok: bool, detail: str) -> None:
        """Tell the waiting job what became of its activation; one that was withdrawn stays so."""
        with self._database.transaction(durable=True) as connection:
            connection.execute(
                "UPDATE activations SET state = ?, detail = ? WHERE activation_id = ? AND state = 'pending'",
                ("done" if ok else "failed", detail, activation_id),
            )

    def wait_activation(
        self, activation_id: int, timeout_s: float, should_stop: Callable[[], bool] = lambda: False
    ) -> Activation:
        """Wait for the daemon's answer; on timeout or stop the request is withdrawn and returned as such.

        Raises:
            NotFoundError: no such activation.
        """
        give_up = time.monotonic() + timeout_s
        while True:
            if time.monotonic() > give_up or should_stop():
                with self._database.transaction() as connection:
                    connection.execute(
                        "UPDATE activations SET state = 'withdrawn' WHERE activation_id = ? AND state = 'pending'",
                        (activation_id,),
                    )
            rows = self._database.read("SELECT * FROM activations WHERE activation_id = ?", (activation_id,))
            if not rows:
                raise NotFoundError(f"no activation {activation_id}")
            if rows[0]["state"] != "pending":
                return Activation(**rows[0])
            time.sleep(ACTIVATION_POLL_INTERVAL_S)

    # Last, because below it `list` would mean this method.
    def list(
        self, limit: int = 100, cursor: str | None = None, kind: str | None = None, state: str | None = None
    ) -> JobPage:
        """Return a page of jobs, newest first; `cursor` is the `next_cursor` of the page before.

        Raises:
            InvalidError: an unknown kind or state, or a cursor that no page gave out.
        """
        if kind is not None and kind not in KINDS:
            raise InvalidError(f"kind {kind!r} is none of {', '.join(KINDS)}", field="kind")
        if state is not None and state not in STATES:
            raise InvalidError(f"state {state!r} is none of {', '.join(STATES)}", field="state")
        if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
            raise InvalidError(f"cursor {cursor!r} is none that a page gave out; leave it out", field="cursor")
        rows = self._database.read(
            "SELECT * FROM jobs WHERE (?1 IS NULL OR seq < ?1) AND (?2 IS NULL OR kind = ?2)"
            " AND (?3 IS NULL OR state = ?3) ORDER BY seq DESC LIMIT ?4",
            (None if cursor is None else int(cursor), kind, state, limit + 1),
        )
        following = str(rows[limit - 1]["seq"]) if len(rows) > limit else None
        return JobPage(tuple(to_job(row) for row in rows[:limit]), following)
