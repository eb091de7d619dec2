"""The job runner: `RunnerProcess` keeps it alive as a child of the daemon, `python -m` of this module is it.

Under systemd the module is a unit of its own and the daemon starts no child.
"""

import argparse
import contextlib
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
SETTLED_S = 5.0  # a runner that lives this long after a death has found what the one before lacked
MAX_REASON_BYTES = 2000
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
        self._last_reason = ""
        self._begun_s = 0.0
        self._words: int | None = None

    @property
    def alive(self) -> bool:
        """Whether the runner runs now; false in the pause before a restart."""
        child = self._child
        return child is not None and child.poll() is None

    def status(self) -> dict[str, Any]:
        """Return what `/health` shows: alive, pid, restarts since the start, exit code of the last death.

        `settled` is false while the runner is dead or lives for a few seconds only since its last death, and
        `last_reason` is what the dead one said last.
        """
        alive = self.alive
        return {
            "alive": alive,
            "settled": alive and (not self._restarts or time.monotonic() - self._begun_s > SETTLED_S),
            "pid": self._child.pid if self._child is not None else None,
            "restarts": self._restarts,
            "last_exit": self._last_exit,
            "last_reason": self._last_reason,
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
        self._begun_s = time.monotonic()
        self._words, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # Our own program with our own arguments.
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "brain_service.jobs.runner"),
                    *("--data-dir", str(self._data_dir)),
                    *("--lifeline-fd", str(lifeline), "--last-words-fd", str(write_end)),
                ],
                stdin=subprocess.DEVNULL,
                env=self._environment,
                pass_fds=(lifeline, write_end),
                # Ctrl-C on the terminal is the daemon's to handle: it then stops the runner in order.
                start_new_session=True,
            )
        finally:
            os.close(write_end)

    def _hear_last_words(self) -> str:
        """Return what the runner that ended gave as its reason, and close its pipe."""
        if self._words is None:
            return ""
        try:
            return os.read(self._words, MAX_REASON_BYTES).decode(errors="replace")
        except BlockingIOError:
            return ""
        finally:
            os.close(self._words)
            self._words = None

    def _keep_alive(self, read_end: int, write_end: int) -> None:
        pause_s = FIRST_BACKOFF_S
        try:
            while self._child is not None:
                self._last_exit = self._child.wait()
                self._last_reason = self._hear_last_words()
                if self._done.is_set():
                    return
                if time.monotonic() - self._begun_s > STABLE_S:
                    pause_s = FIRST_BACKOFF_S
                log.error(
                    "the job runner died; it starts again",
                    extra={"exit_code": self._last_exit, "reason": self._last_reason, "pause_s": pause_s},
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
            self._hear_last_words()
            os.close(read_end)
            os.close(write_end)


def main(arguments: list[str] | None = None) -> int:
    """Run jobs of a data directory until SIGTERM; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m brain_service.jobs.runner", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="the daemon's data directory")
    parser.add_argument("--lifeline-fd", type=int, help="a pipe that closes when the daemon is gone")
    parser.add_argument("--last-words-fd", type=int, help="a pipe that is told why the runner ends by itself")
    options = parser.parse_args(arguments)
    setup_logging("info")
    reason = _run(options.data_dir, options.lifeline_fd)
    if reason and options.last_words_fd is not None:
        with contextlib.suppress(OSError):
            os.write(options.last_words_fd, reason.encode(errors="replace")[:MAX_REASON_BYTES])
    return 1 if reason else 0


def _run(data_dir: Path, lifeline: int | None) -> str:
    """Run jobs until told to stop; returns why it had to stop otherwise, or nothing."""
    # Here, because the daemon imports this module and has no use for the loop.
    from brain_service.jobs.loop import RunnerLoop

    try:
        settings = load_settings({"data_dir": data_dir})
        setup_logging(settings.log_level, settings.log_format)
        RunnerLoop(settings, lifeline).run()
    except BrainError as error:
        reason = error.detail
    except OSError as error:
        where = f" on {error.filename}" if error.filename else ""
        reason = f"the system refused{where}: {error.strerror or error}; check free space and permissions"
    except Exception as error:
        # The runner's own boundary: its parent gets a reason in place of a traceback.
        log.exception("the job runner fails")
        return f"unexpected {type(error).__name__}: {error}; the daemon's log has the details"
    else:
        return ""
    log.error("the job runner stops", extra={"reason": reason})
    return reason


if __name__ == "__main__":
    sys.exit(main())
