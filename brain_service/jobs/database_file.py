"""The file brain.db as it comes and goes: opened when it is needed, and anew once it was moved aside."""

import contextlib
import threading
from pathlib import Path

from brain_service.database import Database
from brain_service.errors import BrainError, UnavailableError
from brain_service.jobs.rows import ADDED_COLUMNS, SCHEMA, VERSION

__all__ = ["DatabaseFile"]


class DatabaseFile:
    """Where the jobs are, open or not. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Take the path; nothing is opened yet."""
        self._path = path
        self._opening = threading.Lock()
        # With the number of the file that was opened: another may stand at its path since.
        self._opened: tuple[Database, int] | None = None

    def open(self) -> Database:
        """Open or create the file, and return it.

        Raises:
            ConfigError: it cannot be opened, or a newer version of this program wrote it.
            CorruptDataError: it is no intact database.
        """
        database = Database(self._path, SCHEMA, VERSION, added_columns=ADDED_COLUMNS)
        self._opened = database, self._path.stat().st_ino
        return database

    def current(self) -> Database:
        """Return the database that is at the path now, opened if need be.

        Raises:
            UnavailableError: it does not open; the next call tries again.
        """
        with self._opening:
            with contextlib.suppress(OSError):
                if self._opened is not None and self._path.stat().st_ino == self._opened[1]:
                    return self._opened[0]
            # Nothing is open yet, or the catalogue has moved a damaged file aside: others use its successor.
            try:
                if not self._path.parent.is_dir():
                    raise UnavailableError(f"{self._path.parent} is gone; check that its medium is there")
                return self.open()
            except BrainError as error:
                raise UnavailableError(error.detail) from error

    def close(self) -> None:
        """Close the database if it was opened."""
        if self._opened is not None:
            self._opened[0].close()
