"""The job runner as a service of its own: the daemon starts none, and tells from its lock whether it lives."""

import fcntl
import os
from pathlib import Path
from typing import Any

__all__ = ["RUNNER_LOCK", "ExternalRunner"]

RUNNER_LOCK = ".runner.lock"  # in the directory of jobs; the runner holds it for as long as it lives


class ExternalRunner:
    """Stands in for `RunnerProcess` where `jobs.runner` is `external`. Methods block; call them in a thread."""

    def __init__(self, jobs_dir: Path) -> None:
        self._lock = jobs_dir / RUNNER_LOCK

    @property
    def alive(self) -> bool:
        """Whether a runner holds its lock now."""
        try:
            fd = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            # A runner that starts at this very moment finds the lock taken, and asks again within a poll.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def status(self) -> dict[str, Any]:
        """Return what `/health` shows, in the form of `RunnerProcess.status`."""
        alive = self.alive
        absent = (
            ""
            if alive
            else (
                "no job runner lives, so jobs wait: 'systemctl start continuon-brain-jobs', or "
                "'python -m brain_service.jobs.runner --data-dir ...'"
            )
        )
        return {
            "alive": alive,
            "settled": alive,
            "pid": None,
            "restarts": 0,
            "last_exit": None,
            "last_reason": "",
            "absent": absent,
        }

    def start(self) -> None:
        """Do nothing: the service manager starts it."""

    def stop(self) -> None:
        """Do nothing: the service manager stops it."""
