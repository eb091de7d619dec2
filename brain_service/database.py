"""One SQLite connection in WAL mode, shared by a process's threads; SQLite's errors become ours.

Several rooms keep their tables in one file, each under a name with a version of its own in the table `schemas`;
the jobs, who were there first, use SQLite's `user_version`.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from brain_service.errors import BrainError, ConfigError, CorruptDataError, UnavailableError

__all__ = ["Database"]

# Longer than any transaction here; a writer that waits this long has found a stopped process.
BUSY_TIMEOUT_S = 10.0

_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_NO_MEDIUM = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
)


class Database:
    """A SQLite file of a known schema version. Safe to share between threads and between processes."""

    def __init__(
        self,
        path: Path | None,
        schema: str,
        version: int,
        *,
        name: str | None = None,
        added_columns: Sequence[tuple[str, str, str]] = (),
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> None:
        """Open or create the file and its tables; without a path they live in memory.

        `name` is the schema's own version record; None stands for the file's `user_version`. `schema` is
        statements that do nothing where their table exists. `added_columns` (table, name, declaration) came after
        their table's first version; a program that knows none of them leaves them alone. A call that finds the
        file locked waits for `busy_timeout_s` at most.

        Raises:
            ConfigError: the file cannot be opened, or a newer version of this program wrote it.
            CorruptDataError: it is no intact SQLite database.
        """
        self._path = path or Path(":memory:")
        self._lock = threading.Lock()
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self._path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"cannot open {self._path}: {error}; check free space and the owner of its folder, and move away "
                "what is no database there"
            ) from error
        try:
            self._prepare(schema, version, name, added_columns)
        except BaseException:
            # Raised again: whatever it is, the file must not stay open.
            self._connection.close()
            raise

    def _prepare(
        self, schema: str, version: int, name: str | None, added_columns: Sequence[tuple[str, str, str]]
    ) -> None:
        self._connection.row_factory = sqlite3.Row
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.Error as error:
            raise self._translated(error) from error
        with self.transaction() as connection:
            found = _version(connection, name)
            if found > version:
                raise ConfigError(
                    f"{self._path} has {name or 'jobs'} schema {found}, this program knows up to {version}; "
                    "update the program"
                )
            for statement in schema.split(";"):
                connection.execute(statement)
            for table, column, declaration in added_columns:
                known = connection.execute("SELECT name FROM pragma_table_info(?)", (table,)).fetchall()
                if column not in (row["name"] for row in known):
                    connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {declaration}")
            if name is None:
                # PRAGMA takes no parameters; the version is our own integer.
                connection.execute(f"PRAGMA user_version={version:d}")
            elif found != version:
                connection.execute("INSERT OR REPLACE INTO schemas VALUES (?, ?)", (name, version))

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """Run a block as one write transaction: all of it, or nothing when the block raises.

        `durable` waits until the commit is on the medium; without it a power cut may undo the last moments
        (never tear them), which is enough for progress and spares the card.

        Raises:
            UnavailableError: the medium is full, read-only or failing, or the database stays locked.
            CorruptDataError: the file is damaged.
        """
        with self._lock:
            try:
                self._connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    # Raised again: whatever ends the block early, nothing of it is kept.
                    self._connection.rollback()
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                if self._connection.in_transaction:
                    self._connection.rollback()
                raise self._translated(error) from error

    def read(self, sql: str, values: tuple[object, ...] = ()) -> list[sqlite3.Row]:
        """Return the rows of one SELECT.

        Raises:
            UnavailableError: the medium fails or the database stays locked.
            CorruptDataError: the file is damaged.
        """
        with self._lock:
            try:
                return self._connection.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise self._translated(error) from error

    def check(self) -> None:
        """Look whether the file's structure is whole; takes milliseconds a megabyte.

        Raises:
            CorruptDataError: it is not.
            UnavailableError: the medium fails.
        """
        rows = self.read("PRAGMA quick_check(1)")
        if rows[0][0] != "ok":
            raise CorruptDataError(f"{self._path} is damaged: {rows[0][0]}")

    def close(self) -> None:
        """Close the connection; what was committed stays."""
        with self._lock:
            self._connection.close()

    def _translated(self, error: sqlite3.Error) -> BrainError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
        if code in _CORRUPT:
            return CorruptDataError(
                f"{self._path} is damaged ({error}); restart the daemon, which moves it aside and begins a new "
                "one: it holds the history of jobs, while episodes, datasets and models are files of their own"
            )
        if code in _NO_MEDIUM:
            return UnavailableError(
                f"cannot write {self._path} ({error}); check free space and permissions of its folder"
            )
        return BrainError(f"{self._path}: {error}")


def _version(connection: sqlite3.Connection, name: str | None) -> int:
    """Return the version of a schema in the file, 0 where it is not there yet."""
    if name is None:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])
    connection.execute("CREATE TABLE IF NOT EXISTS schemas (name TEXT PRIMARY KEY, version INTEGER NOT NULL)")
    row = connection.execute("SELECT version FROM schemas WHERE name = ?", (name,)).fetchone()
    return 0 if row is None else int(row[0])
