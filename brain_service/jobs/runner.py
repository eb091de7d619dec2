"""The job runner: `RunnerProcess` keeps it alive as a child of the daemon, `python -m` of this module is it.

Under systemd the module is a unit of its own and the daemon starts no child.
"""

import argparse
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brain_service.errors import BrainError
from brain_service.logs import setup_logging
from brain_service.settings import child_environment, load_settings

__all__ = ["RunnerProcess", "main"]

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 30.0
STABLE_S = 60.0
STOP_TIMEOUT_S = 10.0


class RunnerProcess:
    """The runner as a child process, started again when it dies, with growing pauses.

    It holds one end of a pipe whose other end is this process's: when the daemon dies, however hard, the
    runner ends its job's worker and goes. `start` and `stop` block; call them off the event loop.
    """

    def __init__(self, data_dir: Path, environment: Mapping[str, str] | None = None) -> None:
        """`environment` is put over this process's own: settings that came by the command line, for instance."""
        self._data_dir = data_dir
        self._environment = child_environment(environment or {})
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._restarts = 0
        self._last_exit: int | None = None

    @property
    def alive(self) -> bool:
        """Whether the runner runs now; false in the pause before a restart."""
        child = self._child
        return child is not None and child.poll() is None

    def status(self) -> dict[str, Any]:
        """Return what `/health` shows: alive, pid, restarts since the start, exit code of the last death."""
        return {
            "alive": self.alive,
            "pid": self._child.pid if self._child is not None else None,
            "restarts": self._restarts,
            "last_exit": self._last_exit,
        }

    def start(self) -> None:
        """Start the runner and the thread that keeps it alive; a second call does nothing."""
        if self._thread is None:
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            self._child = self._spawn(read_end)
            self._thread = threading.Thread(
                target=self._keep_alive, args=(read_end, write_end), name="job-runner", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Stop the runner; a job that runs goes back to the queue. A second call does nothing."""
        if self._thread is None:
            return
        with self._lock:
            self._done.set()
            if self._child is not None:
                self._child.terminate()
        self._thread.join(STOP_TIMEOUT_S)
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
        self._thread.join()
        self._thread = None

    def _spawn(self, lifeline: int) -> "subprocess.Popen[bytes]":
        # Our own program with our own arguments.
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "brain_service.jobs.runner"),
                *("--data-dir", str(self._data_dir), "--lifeline-fd", str(lifeline)),
            ],
            stdin=subprocess.DEVNULL,
            env=self._environment,
            pass_fds=(lifeline,),
            # Ctrl-C on the terminal is the daemon's to handle: it then stops the runner in order.
            start_new_session=True,
        )

    def _keep_alive(self, read_end: int, write_end: int) -> None:
        pause_s = FIRST_BACKOFF_S
        try:
            while self._child is not None:
                begun_s = time.monotonic()
                self._last_exit = self._child.wait()
                if self._done.is_set():
                    return
                if time.monotonic() - begun_s > STABLE_S:
                    pause_s = FIRST_BACKOFF_S
                log.error(
                    "the job runner died; it starts again",
                    extra={"exit_code": self._last_exit, "pause_s": pause_s},
                )
                if self._done.wait(pause_s):
                    return
                pause_s = min(pause_s * 2, LAST_BACKOFF_S)
                with self._lock:
                    if self._done.is_set():
                        return
                    self._child = self._spawn(read_end)
                    self._restarts += 1
        finally:
            os.close(read_end)
            os.close(write_end)


def main(arguments: list[str] | None = None) -> int:
    """Run jobs of a data directory until SIGTERM; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m brain_service.jobs.runner", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="the daemon's data directory")
    parser.add_argument("--lifeline-fd", type=int, help="a pipe that closes when the daemon is gone")
    options = parser.parse_args(arguments)
    # Here, because the daemon imports this module and has no use for the loop.
    from brain_service.jobs.loop import RunnerLoop

    setup_logging("info")
    try:
        settings = load_settings({"data_dir": options.data_dir})
        setup_logging(settings.log_level, settings.log_format)
        RunnerLoop(settings, options.lifeline_fd).run()
    except BrainError as error:
        log.error("the job runner stops", extra={"reason": error.detail})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
