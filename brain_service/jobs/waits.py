"""Parked jobs: those that wait for the network or the cloud hold no process, and are woken when their time comes.

A job woken in the network lane keeps its wait, moved on by a lease: whatever kills its worker together with the
runner, it is woken again and no attempt is lost. In the work lane its process then owns it, as any other's does.
"""

import os
import sqlite3
import time
from collections.abc import Collection

from brain_service.jobs.job import Job, Lane
from brain_service.jobs.rows import dump, fetch

__all__ = ["EXIT_STOPPED", "MAX_WAIT_S", "park_row", "wake"]

EXIT_STOPPED = os.EX_TEMPFAIL
"""Exit code of a worker that stopped on request and leaves it to the runner to say why."""

MAX_WAIT_S = 3600.0
"""No wait is longer. One that seems to be was written before the clock was set back: it is over."""

_LEASE_S = 60.0


def park_row(connection: sqlite3.Connection, job: Job, lane: Lane, wait_s: float) -> None:
    """Note inside a transaction when a running job is to be woken, and in which lane; no process owns it then."""
    wake_ns = time.time_ns() + int(min(max(wait_s, 0.0), MAX_WAIT_S) * 1e9)
    connection.execute("INSERT OR REPLACE INTO waits VALUES (?, ?, ?)", (job.job_id, lane, wake_ns))
    stages = [report.ended("pending") for report in job.stages] if lane == "work" else job.stages
    connection.execute("UPDATE jobs SET process = NULL, stages = ? WHERE job_id = ?", (dump(stages), job.job_id))


def wake(connection: sqlite3.Connection, lane: Lane, ending: Collection[str] = ()) -> Job | None:
    """Take the parked job of a lane that has been due the longest and is not in `ending`; None if none is."""
    now_ns = time.time_ns()
    rows = connection.execute(
        "SELECT job_id FROM waits JOIN jobs USING (job_id) WHERE lane = ? AND state = 'running'"
        " AND (wake_ns <= ? OR wake_ns > ?) ORDER BY wake_ns",
        (lane, now_ns, now_ns + int(MAX_WAIT_S * 1e9)),
    ).fetchall()
    row = next((row for row in rows if row["job_id"] not in ending), None)
    if row is None:
        return None
    if lane == "network":
        lease_ns = now_ns + int(_LEASE_S * 1e9)
        connection.execute("UPDATE waits SET wake_ns = ? WHERE job_id = ?", (lease_ns, row["job_id"]))
    else:
        connection.execute("DELETE FROM waits WHERE job_id = ?", (row["job_id"],))
    return fetch(connection, row["job_id"])
