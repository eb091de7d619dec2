"""What the runner process does: claim one job at a time, watch its worker, and say how it ended."""

import fcntl
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from brain_service.errors import ConflictError, UnavailableError
from brain_service.jobs.events import EventLog
from brain_service.jobs.external import RUNNER_LOCK
from brain_service.jobs.folder import JobFolder
from brain_service.jobs.job import Job
from brain_service.jobs.processes import end_group, identify, stop_child
from brain_service.jobs.table import JobTable
from brain_service.settings import Settings, child_environment

__all__ = ["NUMERICS", "RunnerLoop"]

log = logging.getLogger(__name__)

NUMERICS: Mapping[str, str] = {
    # Large arrays on huge pages (glibc 2.35 and newer; others ignore it): a gradient streams through hundreds of
    # megabytes of them, and takes a third less time on x86-64 (`make bench`).
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Environment of processes that train."""


class RunnerLoop:
    """The only runner of a data directory: one job at a time, so that two trainings never share the machine.

    `lifeline` is the read end of a pipe whose write end the daemon holds: when it closes, the daemon is gone,
    the running job goes back to the queue and the loop ends.
    """

    def __init__(self, settings: Settings, lifeline: int | None = None) -> None:
        self._settings = settings
        self._jobs = settings.jobs
        self._lifeline = lifeline
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._table = JobTable(settings.database)

    def run(self) -> None:
        """Work until SIGTERM, SIGINT or the end of the lifeline. Call it in the main thread.

        Raises:
            UnavailableError: the job table fails, or a file stands in the place of the directory of jobs.
            OSError: that directory cannot be made or locked.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        # Without this a signal that comes between two checks would wait for the next poll.
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        with self._only_runner() as alone:
            if not alone:
                return
            self._recover()
            while not self._stopping:
                job = self._table.claim_next()
                if job is None:
                    self._wait(self._jobs.poll_interval_s)
                else:
                    self._run(job)

    def _on_signal(self, *_: object) -> None:
        self._stopping = True

    def _wait(self, timeout_s: float, *more: int) -> bool:
        """Sleep until something happens; True if one of the descriptors in `more` is ready."""
        watched = [self._wake_read, *more, *([] if self._lifeline is None else [self._lifeline])]
        ready, _, _ = select.select(watched, [], [], timeout_s)
        if self._lifeline in ready and os.read(self._lifeline, 1) == b"":
            log.info("the daemon is gone; stopping")
            self._stopping = True
        if self._wake_read in ready:
            os.read(self._wake_read, 512)
        return any(fd in ready for fd in more)

    @contextmanager
    def _only_runner(self) -> Iterator[bool]:
        """Hold the data directory's runner lock; False if told to stop while another runner still had it."""
        try:
            self._settings.jobs_dir.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise UnavailableError(f"{self._settings.jobs_dir} is no directory; move it away") from error
        lock = os.open(self._settings.jobs_dir / RUNNER_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            held = False
            while not held and not self._stopping:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held = True
                except BlockingIOError:
                    self._wait(self._jobs.poll_interval_s)
            yield held
        finally:
            os.close(lock)

    def _recover(self) -> None:
        for job, identity in self._table.running():
            if identity is not None and end_group(identity):
                log.warning("ended what was left of a job", extra={"job_id": job.job_id})
        for job in self._table.requeue_orphans(self._jobs.max_attempts):
            log.warning("job was interrupted", extra={"job_id": job.job_id, "state": job.state})
            with EventLog(self._folder(job).events) as events:
                events.append("state", state=job.state, attempt=job.attempt)

    def _folder(self, job: Job) -> JobFolder:
        folder = JobFolder(self._settings.jobs_dir, job.job_id)
        folder.create()
        return folder

    def _run(self, job: Job) -> None:
        folder = self._folder(job)
        with EventLog(folder.events) as events:
            events.append("state", state="running", attempt=job.attempt)
        log.info("job starts", extra={"job_id": job.job_id, "kind": job.kind, "attempt": job.attempt})
        begun_s = time.monotonic()
        child = self._spawn(job, folder.log)
        self._table.set_process(job.job_id, identify(child.pid))
        reason = self._watch(job, child)
        ended = self._conclude(job, reason)
        # The worker is gone, so that this line stands after all of its own.
        with EventLog(folder.events) as events:
            events.append("state", state=ended.state, error=ended.error)
        log.info(
            "job ends",
            extra={
                "job_id": job.job_id,
                "state": ended.state,
                "duration_s": round(time.monotonic() - begun_s, 3),
            },
        )
        for job_id in self._table.prune(self._jobs.keep_finished):
            JobFolder(self._settings.jobs_dir, job_id).remove()

    def _spawn(self, job: Job, log_file: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "brain_service.jobs.worker", "--data-dir", str(self._settings.data_dir)]
        # A job that starts again, and the next job of the same sizes, find their programs compiled.
        environment = {
            **NUMERICS,
            "JAX_COMPILATION_CACHE_DIR": str(self._settings.cache_dir / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        with log_file.open("ab") as output:
            return subprocess.Popen(
                [*command, "--job-id", job.job_id, "--runner-pid", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=child_environment(environment),
                start_new_session=True,
            )

    def _watch(self, job: Job, child: "subprocess.Popen[bytes]") -> str:
        """Wait for the worker to end, or end it when the job is cancelled or the runner stops; says how."""
        # SIGTERM at once, SIGKILL at half the promised time: the rest is for the kernel to clear the memory.
        grace_s = self._jobs.cancel_grace_s / 2
        pidfd = os.pidfd_open(child.pid)
        try:
            while not self._wait(self._jobs.poll_interval_s, pidfd):
                if self._stopping or self._table.get(job.job_id).cancel_requested:
                    break
            else:
                grace_s = 0.0
        finally:
            os.close(pidfd)
        # Also after an orderly end: nothing of the job may outlive it.
        code = stop_child(child, grace_s)
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"

    def _conclude(self, job: Job, reason: str) -> Job:
        """Say what became of the job, unless its worker has said it."""
        now = self._table.get(job.job_id)
        if now.state != "running":
            return now
        if self._stopping and not now.cancel_requested:
            self._table.release(job.job_id)
            return self._table.get(job.job_id)
        try:
            return self._table.requeue(job.job_id, reason, self._jobs.max_attempts)
        except ConflictError:
            return self._table.get(job.job_id)
