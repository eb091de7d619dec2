"""An operator's wish that learning rests: a file beside the jobs, so that it outlives daemon, runner and power."""

import contextlib
import time
from pathlib import Path
from typing import Any

import orjson

from brain_service.durable import fsync_directory, make_directory, write_atomic
from brain_service.errors import UnavailableError

__all__ = ["Hold"]

FILE = "paused.json"
UNREADABLE = "paused by an operator"


class Hold:
    """Tells whether an operator paused learning, and pauses it. Trainings here rest as they do when it is hot.

    Asked by the training process between its steps and set by the daemon; the file is all that they share. What
    stands in the file counts for little: a file that cannot be read still pauses.
    """

    def __init__(self, jobs_dir: Path) -> None:
        self._path = jobs_dir / FILE
        self._stamp: tuple[int, int] | None = None
        self._note: dict[str, Any] = {}

    def reason(self) -> str:
        """Return why training rests, for people; empty while it may go on. One question to the file system."""
        status = self.status()
        return f"{status['reason']}; POST /jobs/resume goes on" if status["paused"] else ""

    def status(self) -> dict[str, Any]:
        """Return `paused`, its `reason` and since when (`since_ns`, None while it goes on)."""
        try:
            found = self._path.stat()
        except OSError:
            return {"paused": False, "reason": "", "since_ns": None}
        stamp = (found.st_ino, found.st_mtime_ns)
        if stamp != self._stamp:
            self._stamp, self._note = stamp, _read(self._path)
        since_ns = self._note.get("since_ns")
        return {
            "paused": True,
            "reason": str(self._note.get("reason") or UNREADABLE),
            "since_ns": since_ns if isinstance(since_ns, int) else found.st_mtime_ns,
        }

    def pause(self, reason: str = "") -> None:
        """Let learning rest from now on, durably; a second call changes the reason only.

        Raises:
            UnavailableError: the medium is full or read-only.
        """
        before = self.status()
        note = {"reason": reason or UNREADABLE, "since_ns": before["since_ns"] or time.time_ns()}
        try:
            make_directory(self._path.parent)
            write_atomic(self._path, orjson.dumps(note))
        except OSError as error:
            raise UnavailableError(
                f"the pause cannot be noted in {self._path}: {error.strerror}; free some space, then ask again"
            ) from error

    def resume(self) -> None:
        """Let learning go on, durably; without a pause it does nothing.

        Raises:
            UnavailableError: the medium is read-only.
        """
        try:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self._path.unlink()
                fsync_directory(self._path.parent)
        except OSError as error:
            raise UnavailableError(
                f"{self._path} cannot be removed: {error.strerror}; make its medium writable, then ask again"
            ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        note = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return note if isinstance(note, dict) else {}
