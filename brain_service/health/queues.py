"""How much work waits in brain.db: counted through a connection of its own that reads only.

Other rooms own the tables; one that is missing, or of a version nobody here knows, has nothing that waits.
"""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

__all__ = ["job_counts", "pending_uploads", "running_jobs"]

_BUSY_TIMEOUT_S = 0.2


def job_counts(database: Path) -> dict[tuple[str, str], int]:
    """Return the number of jobs by kind and state; none where they cannot be read within `_BUSY_TIMEOUT_S`."""
    rows = _rows(database, "SELECT kind, state, count(*) FROM jobs GROUP BY kind, state")
    return {(str(kind), str(state)): int(count) for kind, state, count in rows}


def running_jobs(database: Path) -> list[str]:
    """Return the ids of the jobs that run now, oldest first."""
    return [str(row[0]) for row in _rows(database, "SELECT job_id FROM jobs WHERE state = 'running' ORDER BY seq")]


def pending_uploads(database: Path) -> dict[str, int]:
    """Return the number of uploads by state (`waiting`, `failed`, ...); none where nothing was ever uploaded."""
    rows = _rows(database, "SELECT state, count(*) FROM uploads WHERE state <> 'done' GROUP BY state")
    return {str(state): int(count) for state, count in rows}


def _rows(database: Path, sql: str) -> list[Any]:
    with contextlib.suppress(sqlite3.Error, OSError):
        connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT_S)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()
    return []
