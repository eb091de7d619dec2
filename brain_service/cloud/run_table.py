"""The table `cloud_runs` in brain.db: what is known of each run, changed in whole, durable transactions."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from brain_service.cloud.launchers import RunRequest
from brain_service.cloud.moments import moment
from brain_service.database import Database
from brain_service.errors import ConflictError, CorruptDataError, NotFoundError

__all__ = ["ENDED", "RunRecord", "RunState", "RunTable"]

RunState = Literal["waiting", "running", "done", "failed", "stopped"]
ENDED = ("done", "failed", "stopped")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cloud_runs (
    run_id TEXT PRIMARY KEY, state TEXT NOT NULL, record TEXT NOT NULL, created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS cloud_runs_by_state ON cloud_runs (state)
"""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as its last look left it. Fields that end in `_at` are marks of `moments.moment`."""

    request: RunRequest
    state: RunState = "waiting"
    detail: str = "not asked for yet"
    attempt: int = 1
    """Number of the present attempt, in names and labels."""
    starts: int = 0
    """Attempts before it that got a machine."""
    fruitless: int = 0
    """Askings in a row that got none."""
    capacity: str | None = None
    asked_at: str | None = None
    """Set before a creation, cleared when its answer is stored."""
    paused_at: str | None = None
    waiting_at: str | None = field(default_factory=moment)
    blind_at: str | None = None
    """Since when the service refuses to tell how the capacity is."""
    past_s: float = 0.0
    """Running time of earlier attempts."""
    since_ns: int | None = None
    """When the present attempt began to run, and when it was last known to."""
    seen_ns: int | None = None
    beat_ns: int | None = None
    """`updated_ns` of the last heartbeat; and when it was seen to change."""
    beat_at: str | None = None
    moved_at: str | None = None
    """When phase or step were seen to change."""
    old_beat_ns: int | None = None
    """The last heartbeat of the attempts before, and how many starts of its own the run counted then."""
    old_starts: int = 0
    status: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    release: tuple[str, ...] = ()
    """Capacity that is to be stopped."""

    def to_json(self) -> str:
        """Return the row's text."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str, run_id: str) -> "RunRecord":
        """Parse a row; keys that this version does not know are dropped.

        Raises:
            CorruptDataError: it is no record.
        """
        try:
            found = json.loads(text)
            known = {item.name for item in fields(RunRecord)}
            values = {name: value for name, value in found.items() if name in known}
            request = dict(values.pop("request"))
            request["arguments"] = tuple(request["arguments"])
            values["release"] = tuple(values.get("release", ()))
            return RunRecord(request=RunRequest(**request), **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptDataError(f"run {run_id!r} in cloud_runs: {error}") from error


class RunTable:
    """Runs by id. Safe to share between threads and between processes."""

    def __init__(self, database: Path) -> None:
        """Open or create the table.

        Raises:
            ConfigError: the file cannot be opened.
            CorruptDataError: it is no intact database.
        """
        self._database = Database(database, _SCHEMA, 1, name="cloud_runs")

    def add(self, record: RunRecord) -> None:
        """Store a new run; the same request again changes nothing.

        Raises:
            ConflictError: the id belongs to another request.
            UnavailableError: the medium fails.
        """
        run_id, now_ns = record.request.run_id, time.time_ns()
        with self._database.transaction(durable=True) as connection:
            row = connection.execute("SELECT record FROM cloud_runs WHERE run_id = ?", (run_id,)).fetchone()
            if row is None:
                values = (run_id, record.state, record.to_json(), now_ns, now_ns)
                connection.execute("INSERT INTO cloud_runs VALUES (?, ?, ?, ?, ?)", values)
                return
            if RunRecord.from_json(row[0], run_id).request != record.request:
                raise ConflictError(f"run {run_id!r} was begun with another request; take another run id")

    def get(self, run_id: str) -> RunRecord:
        """Return a run.

        Raises:
            NotFoundError: there is none.
            CorruptDataError: its row is damaged.
            UnavailableError: the medium fails.
        """
        found = self.find(run_id)
        if found is None:
            raise NotFoundError(f"no run {run_id!r}; begin() comes first")
        return found

    def find(self, run_id: str) -> RunRecord | None:
        """Return a run, None where there is none.

        Raises:
            CorruptDataError: its row is damaged.
            UnavailableError: the medium fails.
        """
        rows = self._database.read("SELECT record FROM cloud_runs WHERE run_id = ?", (run_id,))
        return RunRecord.from_json(rows[0][0], run_id) if rows else None

    def unfinished(self) -> tuple[str, ...]:
        """Return the ids of the runs that have not ended, oldest first.

        Raises:
            UnavailableError: the medium fails.
        """
        rows = self._database.read("SELECT run_id, state FROM cloud_runs ORDER BY created_ns")
        return tuple(row["run_id"] for row in rows if row["state"] not in ENDED)

    def change(self, run_id: str, change: Callable[[RunRecord], RunRecord]) -> RunRecord:
        """Put what `change` makes of a run in its place, durably, and return it.

        What ended stays as it ended, whoever else was about to write: only its `release` may still shrink.

        Raises:
            NotFoundError: there is no such run.
            UnavailableError: the medium fails.
        """
        with self._database.transaction(durable=True) as connection:
            row = connection.execute("SELECT record FROM cloud_runs WHERE run_id = ?", (run_id,)).fetchone()
            if row is None:
                raise NotFoundError(f"no run {run_id!r}")
            old = RunRecord.from_json(row[0], run_id)
            new = change(old)
            if old.state in ENDED and (new.state != old.state or not set(new.release) <= set(old.release)):
                return old
            if new != old:
                values = (new.state, new.to_json(), time.time_ns(), run_id)
                connection.execute(
                    "UPDATE cloud_runs SET state = ?, record = ?, updated_ns = ? WHERE run_id = ?", values
                )
        return new

    def close(self) -> None:
        """Close the database."""
        self._database.close()
