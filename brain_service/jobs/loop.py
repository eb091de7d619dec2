"""What the runner process does: claim a job a lane, watch its worker, and say how it ended."""

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
from dataclasses import dataclass
from pathlib import Path

from brain_service.errors import ConflictError, UnavailableError
from brain_service.jobs.events import EventLog
from brain_service.jobs.external import RUNNER_LOCK
from brain_service.jobs.folder import JobFolder
from brain_service.jobs.job import LANES, Job, Lane
from brain_service.jobs.table import JobTable
from brain_service.jobs.waits import EXIT_STOPPED
from brain_service.processes import end_group, identify, stop_child
from brain_service.settings import Settings, child_environment

__all__ = ["NUMERICS", "RunnerLoop"]

log = logging.getLogger(__name__)

NUMERICS: Mapping[str, str] = {
    # Large arrays on huge pages (glibc 2.35 and newer; others ignore it): a gradient streams through hundreds of
    # megabytes of them, and takes a third less time on x86-64 (`make bench`).
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Environment of processes that train."""


REAP_EVERY_S = 3600.0
NETWORK_GRACE_S = 120.0
"""How long a worker may take to tell the cloud that a job was cancelled; then it is woken again for it."""


@dataclass
class _Running:
    """A lane's job and its worker; `pidfd` is readable once the worker has ended."""

    lane: Lane
    job: Job
    child: "subprocess.Popen[bytes]"
    pidfd: int
    begun_s: float
    asked_s: float | None = None
    """When the worker was asked to stop and given time for it."""


class RunnerLoop:
    """The only runner of a data directory: one job a lane at a time.

    Two trainings never share the machine, and none waits for the network. `lifeline` is the read end of a pipe
    whose write end the daemon holds: when it closes, the daemon is gone, the running jobs go back to the queue and
    the loop ends.
    """

    def __init__(self, settings: Settings, lifeline: int | None = None) -> None:
        self._settings = settings
        self._jobs = settings.jobs
        self._lifeline = lifeline
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._table = JobTable(settings.database)
        self._running: dict[Lane, _Running] = {}
        self._reaper: subprocess.Popen[bytes] | None = None
        self._reap_at_s = 0.0

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
            try:
                while not self._stopping:
                    self._reap_now_and_then()
                    self._fill_lanes()
                    self._wait(self._jobs.poll_interval_s, *(running.pidfd for running in self._running.values()))
                    self._look_after_lanes()
            finally:
                for running in list(self._running.values()):
                    self._end(running)

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
        for identity in self._table.interrupted_looks():
            end_group(identity)
        # What goes on elsewhere is looked at again at once, and not when its last look has run out.
        self._table.wake_all("network")
        for job in self._table.requeue_orphans(self._jobs.max_attempts):
            log.warning("job was interrupted", extra={"job_id": job.job_id, "state": job.state})
            with EventLog(self._folder(job).events) as events:
                events.append("state", state=job.state, attempt=job.attempt)

    def _folder(self, job: Job) -> JobFolder:
        folder = JobFolder(self._settings.jobs_dir, job.job_id)
        folder.create()
        return folder

    def _fill_lanes(self) -> None:
        for lane in LANES:
            if lane in self._running:
                continue
            # A job that was parked for another lane has its last worker there until that has gone.
            ending = {running.job.job_id for running in self._running.values()}
            if (job := self._table.claim_next(lane, ending)) is not None:
                self._start(lane, job)

    def _reap_now_and_then(self) -> None:
        """Have it looked whether something bills in the cloud for which no job is there any more."""
        if self._reaper is not None and self._reaper.poll() is not None:
            self._reaper = None
        if self._settings.cloud.project is None or time.monotonic() < self._reap_at_s:
            return
        self._reap_at_s = time.monotonic() + REAP_EVERY_S
        words = [sys.executable, "-m", "brain_service.jobs.reaper", "--data-dir", str(self._settings.data_dir)]
        # It ends by itself within minutes, also without this process.
        self._reaper = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)

    def _look_after_lanes(self) -> None:
        for running in list(self._running.values()):
            over = running.child.poll() is not None
            if not over and self._table.get(running.job.job_id).cancel_requested:
                over = running.lane == "work" or self._asked_long_ago(running)
            if over:
                self._end(running)

    def _asked_long_ago(self, running: _Running) -> bool:
        """Ask a worker of the network to stop, which takes it a few calls; true once it had its time."""
        if running.asked_s is None:
            running.asked_s = time.monotonic()
            running.child.terminate()
        return time.monotonic() - running.asked_s > NETWORK_GRACE_S

    def _start(self, lane: Lane, job: Job) -> None:
        folder = self._folder(job)
        if not self._table.is_parked(job.job_id):
            with EventLog(folder.events) as events:
                events.append("state", state="running", attempt=job.attempt)
            log.info("job starts", extra={"job_id": job.job_id, "kind": job.kind, "attempt": job.attempt})
        child = self._spawn(lane, job, folder.log)
        self._table.set_process(job.job_id, identify(child.pid))
        now_s = time.monotonic()
        # One that is woken to be cancelled knows it from the table: a signal would only end it before it begins.
        asked_s = now_s if job.cancel_requested else None
        self._running[lane] = _Running(lane, job, child, os.pidfd_open(child.pid), now_s, asked_s)

    def _end(self, running: _Running) -> None:
        """Say how a lane's job ended, once its worker has; one that still runs is ended first."""
        job = running.job
        ended = self._conclude(running, self._stop_worker(running))
        del self._running[running.lane]
        if ended is None:
            return
        # The worker is gone, so that this line stands after all of its own.
        with EventLog(self._folder(job).events) as events:
            events.append("state", state=ended.state, error=ended.error)
        duration_s = round(time.monotonic() - running.begun_s, 3)
        log.info("job ends", extra={"job_id": job.job_id, "state": ended.state, "duration_s": duration_s})
        for job_id in self._table.prune(self._jobs.keep_finished):
            JobFolder(self._settings.jobs_dir, job_id).remove()

    def _spawn(self, lane: Lane, job: Job, log_file: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "brain_service.jobs.worker", "--data-dir", str(self._settings.data_dir)]
        # A job that starts again, and the next job of the same sizes, find their programs compiled.
        environment = {
            **NUMERICS,
            "JAX_COMPILATION_CACHE_DIR": str(self._settings.cache_dir / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        with log_file.open("ab") as output:
            return subprocess.Popen(
                [*command, "--job-id", job.job_id, "--lane", lane, "--runner-pid", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=child_environment(environment),
                start_new_session=True,
            )

    def _stop_worker(self, running: _Running) -> str:
        """End the worker with all that it started, also after an orderly end; returns how it ended."""
        # SIGTERM at once, SIGKILL at half the promised time: the rest is for the kernel to clear the memory.
        grace_s = self._jobs.cancel_grace_s / 2 if running.child.poll() is None else 0.0
        os.close(running.pidfd)
        code = stop_child(running.child, grace_s)
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"

    def _conclude(self, running: _Running, reason: str) -> Job | None:
        """Say what became of the job, unless its worker has said it; None where it waits to be woken."""
        job_id = running.job.job_id
        now = self._table.get(job_id)
        if now.state != "running":
            return now
        parked = self._table.is_parked(job_id)
        if parked and (running.child.returncode == 0 or running.lane == "work"):
            return None
        dropped = now.cancel_requested and running.child.returncode != EXIT_STOPPED
        if parked and (self._stopping or dropped):
            # Its state in the cloud is as it was, and may bill: it is looked at again, also to be cancelled.
            self._table.park(job_id, running.lane, 0.0 if self._stopping else self._settings.cloud.poll_interval_s)
            return None
        if self._stopping and not now.cancel_requested:
            self._table.release(job_id)
            return self._table.get(job_id)
        try:
            return self._table.requeue(job_id, reason, self._jobs.max_attempts)
        except ConflictError:
            return self._table.get(job_id)
