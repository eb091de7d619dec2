"""Real runners for the tests, and ways to look at what they started."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from brain_service.jobs.job import ENDED, Job
from brain_service.jobs.table import JobTable

WAIT_S = 300.0  # for a machine that others take; alone nothing takes a tenth of it


def wait_until(happened: Callable[[], bool], what: str) -> None:
    """Poll until it happened; fail with `what` after WAIT_S."""
    give_up = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < give_up, f"waited {WAIT_S:.0f} s for {what}"
        time.sleep(0.02)


def wait_ended(table: JobTable, job_id: str) -> Job:
    """Wait until a job has ended and return it."""
    wait_until(lambda: table.get(job_id).state in ENDED, f"job {job_id} to end")
    return table.get(job_id)


def worker_pid(table: JobTable, *, attempt: int = 1, progress: float = 0.0) -> int:
    """Wait until a worker works on that attempt beyond `progress`, and return its process id."""
    found: list[int] = []

    def look() -> bool:
        found[:] = [
            int(identity.split(":")[1])
            for job, identity in table.running()
            if identity is not None and job.attempt == attempt and job.progress > progress
        ]
        return bool(found)

    wait_until(look, f"a worker in attempt {attempt}")
    return found[0]


def gone(pid: int) -> bool:
    """Whether a process has ended; one that only waits to be reaped has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def running_runner(data_dir: Path, **env: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a runner as systemd would: by itself, stopped by SIGTERM at the end of the block."""
    command = [sys.executable, "-m", "brain_service.jobs.runner", "--data-dir", str(data_dir)]
    with (data_dir / "runner.log").open("ab") as log:
        runner = subprocess.Popen(command, stderr=log, env={**os.environ, **env}, start_new_session=True)
    try:
        yield runner
    finally:
        if runner.poll() is None:
            runner.send_signal(signal.SIGTERM)
        runner.wait(30)
