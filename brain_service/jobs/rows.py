"""Rows of brain.db: the schema, and the changes of a job's state that several transactions share."""

import sqlite3
import time
from collections.abc import Mapping
from typing import Any

import orjson

from brain_service.errors import ConflictError, InvalidError, NotFoundError
from brain_service.jobs.job import EndState, Job, StageReport, StageStatus

__all__ = [
    "ADDED_COLUMNS",
    "BY_PRIORITY",
    "SCHEMA",
    "VERSION",
    "dump",
    "end",
    "fetch",
    "fetch_running",
    "requeue_row",
    "same_request",
    "to_job",
]

VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    params TEXT NOT NULL,
    idempotency_key TEXT UNIQUE,
    state TEXT NOT NULL DEFAULT 'queued',
    progress REAL NOT NULL DEFAULT 0,
    stages TEXT NOT NULL DEFAULT '[]',
    result TEXT NOT NULL DEFAULT '{}',
    error TEXT,
    attempt INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    process TEXT,
    created_ns INTEGER NOT NULL,
    started_ns INTEGER,
    finished_ns INTEGER
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, seq);
CREATE TABLE IF NOT EXISTS waits (
    job_id TEXT PRIMARY KEY,
    lane TEXT NOT NULL,
    wake_ns INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS activations (
    activation_id INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL,
    model_id TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending',
    detail TEXT NOT NULL DEFAULT ''
)
"""

ADDED_COLUMNS = (("jobs", "trainer", "TEXT"),)
"""What older files lack (`database.Database`)."""

# Jobs of older versions have none, which is normal.
BY_PRIORITY = "CASE json_extract(params, '$.priority') WHEN 'high' THEN 0 WHEN 'low' THEN 2 ELSE 1 END"
"""What to order queued jobs by."""

_STAGE_AT_END: Mapping[EndState, StageStatus] = {
    "succeeded": "done",
    "failed": "failed",
    "cancelled": "cancelled",
}


def dump(value: object) -> str:
    """Return the JSON text of a column; dataclasses and NumPy numbers are written too."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def to_job(row: sqlite3.Row) -> Job:
    """Return a row of `jobs` as a Job."""
    return Job(
        job_id=row["job_id"],
        kind=row["kind"],
        state=row["state"],
        progress=row["progress"],
        stages=tuple(StageReport(**stage) for stage in orjson.loads(row["stages"])),
        result=orjson.loads(row["result"]),
        error=None if row["error"] is None else orjson.loads(row["error"]),
        created_ns=row["created_ns"],
        started_ns=row["started_ns"],
        finished_ns=row["finished_ns"],
        attempt=row["attempt"],
        params=orjson.loads(row["params"]),
        cancel_requested=bool(row["cancel_requested"]),
        trainer=None if row["trainer"] is None else orjson.loads(row["trainer"]),
    )


def fetch(connection: sqlite3.Connection, job_id: str) -> Job:
    """Return a job inside a transaction.

    Raises:
        NotFoundError: no such job.
    """
    row = connection.execute("SELECT * FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
    if row is None:
        raise NotFoundError(f"no job {job_id!r}; GET /jobs lists them")
    return to_job(row)


def fetch_running(connection: sqlite3.Connection, job_id: str) -> Job:
    """Return a running job inside a transaction.

    Raises:
        NotFoundError: no such job.
        ConflictError: it is not running.
    """
    job = fetch(connection, job_id)
    if job.state != "running":
        raise ConflictError(f"job {job_id} is {job.state}, not running")
    return job


def same_request(row: sqlite3.Row, kind: str, params: str) -> Job:
    """Return the job that an idempotency key made before.

    Raises:
        InvalidError: it was made of another kind or body.
    """
    if (row["kind"], row["params"]) != (kind, params):
        raise InvalidError(
            f"Idempotency-Key {row['idempotency_key']!r} was used for job {row['job_id']} with another body; "
            "use a new key for a new job",
            field="Idempotency-Key",
        )
    return to_job(row)


def end(
    connection: sqlite3.Connection,
    job: Job,
    state: EndState,
    *,
    result: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
) -> Job:
    """Give a running or queued job its final state inside a transaction; its open activations are withdrawn."""
    stages = [report.ended(_STAGE_AT_END[state]) for report in job.stages]
    connection.execute(
        "UPDATE jobs SET state = ?, progress = iif(? = 'succeeded', 1.0, progress), stages = ?,"
        " result = ifnull(?, result), error = ?, cancel_requested = 0, process = NULL, finished_ns = ?"
        " WHERE job_id = ?",
        (
            state,
            state,
            dump(stages),
            None if result is None else dump(result),
            None if error is None else dump(error),
            time.time_ns(),
            job.job_id,
        ),
    )
    connection.execute(
        "UPDATE activations SET state = 'withdrawn' WHERE job_id = ? AND state = 'pending'", (job.job_id,)
    )
    connection.execute("DELETE FROM waits WHERE job_id = ?", (job.job_id,))
    return fetch(connection, job.job_id)


def requeue_row(connection: sqlite3.Connection, job: Job) -> None:
    """Put a running job back in the queue inside a transaction; its running stage waits again."""
    stages = [report.ended("pending") for report in job.stages]
    connection.execute(
        "UPDATE jobs SET state = 'queued', stages = ?, process = NULL WHERE job_id = ? AND state = 'running'",
        (dump(stages), job.job_id),
    )
    connection.execute("DELETE FROM waits WHERE job_id = ?", (job.job_id,))
