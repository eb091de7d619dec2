"""The queue's rows in `brain.db`: what is to be uploaded where, and how far each file is.

What costs to do again (a finished file, a session's address) is durable; an offset is not, the service knows it.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from brain_service.cloud.freeze import Frozen, FrozenFile
from brain_service.database import Database
from brain_service.errors import BrainError, NotFoundError

__all__ = ["QueuedFile", "UploadTable", "UploadView", "upload_id_of"]

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS uploads (
    upload_id TEXT PRIMARY KEY,
    folder TEXT NOT NULL,
    location TEXT NOT NULL,
    logs TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    next_ns INTEGER NOT NULL DEFAULT 0,
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL,
    error TEXT
);
CREATE TABLE IF NOT EXISTS upload_files (
    upload_id TEXT NOT NULL,
    place INTEGER NOT NULL,
    file TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    crc32c TEXT NOT NULL,
    session TEXT,
    offset_bytes INTEGER NOT NULL DEFAULT 0,
    done INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (upload_id, file)
) WITHOUT ROWID
"""

State = Literal["waiting", "done", "failed"]


@dataclass(frozen=True, slots=True)
class QueuedFile:
    """A frozen file and how far it is; `session` is the address of an upload that has begun."""

    frozen: FrozenFile
    session: str | None
    offset_bytes: int
    done: bool


@dataclass(frozen=True, slots=True)
class UploadView:
    """An upload for people and for jobs. Times in int64 ns; `next_ns` is when another attempt makes sense.

    `failed` is an upload that cannot succeed before something is changed; `error`, a problem document, says what.
    `attempts` counts the calls in a row that found no network.
    """

    upload_id: str
    folder: str
    location: str
    state: State
    files: int
    done_files: int
    size_bytes: int
    done_bytes: int
    attempts: int
    next_ns: int
    created_ns: int
    updated_ns: int
    error: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON-ready mapping."""
        return asdict(self)


def upload_id_of(frozen: Frozen, location: str) -> str:
    """Return the id that content and place decide: 16 hex digits."""
    content = [location, *([item.file, item.size_bytes, item.sha256] for item in frozen.files)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


class UploadTable:
    """Rows of uploads. Thread-safe, and several processes may share the file.

    Raises, in every method:
        UnavailableError: the medium is full, read-only or failing, or the file stays locked.
        CorruptDataError: the file is damaged.
    """

    def __init__(self, database: Path) -> None:
        """Open the tables.

        Raises:
            ConfigError: the file cannot be opened, or a newer version of this program wrote it.
        """
        self._database = Database(database, _SCHEMA, _VERSION, name="uploads")

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def add(self, frozen: Frozen, location: str) -> str:
        """Note an upload, durably, and return its id; of a known one only where its files are is changed."""
        upload_id, now_ns = upload_id_of(frozen, location), time.time_ns()
        values = (upload_id, str(frozen.folder), location, json.dumps(frozen.logs), now_ns, now_ns)
        files = [
            (upload_id, place, item.file, item.size_bytes, item.sha256, item.crc32c)
            for place, item in enumerate(frozen.files)
        ]
        with self._database.transaction(durable=True) as connection:
            connection.execute(
                "INSERT INTO uploads (upload_id, folder, location, logs, state, created_ns, updated_ns)"
                " VALUES (?, ?, ?, ?, 'waiting', ?, ?)"
                " ON CONFLICT (upload_id) DO UPDATE SET folder = excluded.folder",
                values,
            )
            connection.executemany(
                "INSERT OR IGNORE INTO upload_files (upload_id, place, file, size_bytes, sha256, crc32c)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                files,
            )
        return upload_id

    def views(self, upload_id: str | None = None) -> tuple[UploadView, ...]:
        """Return all uploads, oldest first, or the one of that id."""
        where, values = ("", ()) if upload_id is None else ("WHERE u.upload_id = ?", (upload_id,))
        rows = self._database.read(
            # One of two constants stands in it.
            "SELECT u.upload_id, folder, location, state, count(f.file) AS files,"  # noqa: S608
            " ifnull(sum(f.done), 0) AS done_files, ifnull(sum(f.size_bytes), 0) AS size_bytes,"
            " ifnull(sum(iif(f.done, f.size_bytes, min(f.offset_bytes, f.size_bytes))), 0) AS done_bytes,"
            " attempts, next_ns, created_ns, updated_ns, error"
            f" FROM uploads AS u LEFT JOIN upload_files AS f ON f.upload_id = u.upload_id {where}"
            " GROUP BY u.upload_id ORDER BY created_ns, u.upload_id",
            values,
        )
        documents = [dict(row) for row in rows]
        return tuple(
            UploadView(**{**document, "error": document["error"] and json.loads(document["error"])})
            for document in documents
        )

    def view(self, upload_id: str) -> UploadView:
        """Return one upload.

        Raises:
            NotFoundError: there is none of this id.
        """
        found = self.views(upload_id)
        if not found:
            raise NotFoundError(f"no upload {upload_id!r} in the queue; add its folder again")
        return found[0]

    def files(self, upload_id: str) -> list[QueuedFile]:
        """Return an upload's files in the order in which they are sent."""
        rows = self._database.read(
            "SELECT file, size_bytes, sha256, crc32c, session, offset_bytes, done FROM upload_files"
            " WHERE upload_id = ? ORDER BY place",
            (upload_id,),
        )
        return [QueuedFile(FrozenFile(*row[:4]), row[4], row[5], bool(row[6])) for row in rows]

    def twin(self, frozen: FrozenFile, bucket: str) -> str | None:
        """Return the place of an object of the same content that was made in the same bucket, if there is one."""
        rows = self._database.read(
            "SELECT u.location || '/' || f.file FROM upload_files AS f JOIN uploads AS u USING (upload_id)"
            " WHERE f.done AND f.sha256 = ? AND f.size_bytes = ? AND u.location || '/' LIKE ? LIMIT 1",
            (frozen.sha256, frozen.size_bytes, f"gs://{bucket}/%"),
        )
        return str(rows[0][0]) if rows else None

    def logs(self, upload_id: str) -> list[str]:
        """Return the digests of the capture logs that an upload's dataset holds."""
        rows = self._database.read("SELECT logs FROM uploads WHERE upload_id = ?", (upload_id,))
        return [str(digest) for row in rows for digest in json.loads(row[0])]

    def set_session(self, upload_id: str, file: str, session: str | None) -> None:
        """Note, durably, a session that began, or that there is none any more."""
        with self._database.transaction(durable=True) as connection:
            connection.execute(
                "UPDATE upload_files SET session = ?, offset_bytes = 0 WHERE upload_id = ? AND file = ?",
                (session, upload_id, file),
            )

    def set_offset(self, upload_id: str, file: str, offset_bytes: int) -> None:
        """Note how much of a file the service has; a power cut may undo it."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE upload_files SET offset_bytes = ? WHERE upload_id = ? AND file = ?",
                (offset_bytes, upload_id, file),
            )

    def set_file_done(self, upload_id: str, file: str) -> None:
        """Note, durably, that a file is an object now."""
        with self._database.transaction(durable=True) as connection:
            connection.execute(
                "UPDATE upload_files SET done = 1, session = NULL WHERE upload_id = ? AND file = ?",
                (upload_id, file),
            )

    def set_state(
        self,
        upload_id: str,
        state: State,
        *,
        attempts: int = 0,
        wait_s: float = 0.0,
        error: BrainError | None = None,
    ) -> None:
        """Note, durably, how an attempt ended: `wait_s` is how long to leave it alone."""
        now_ns = time.time_ns()
        text = None if error is None else json.dumps(error.problem(), default=str)
        with self._database.transaction(durable=True) as connection:
            connection.execute(
                "UPDATE uploads SET state = ?, attempts = ?, next_ns = ?, updated_ns = ?, error = ?"
                " WHERE upload_id = ?",
                (state, attempts, now_ns + round(wait_s * 1e9) if wait_s else 0, now_ns, text, upload_id),
            )
