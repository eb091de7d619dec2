"""What a stage gets to work with: the job, its parameters, the settings, and a way to report and to stop."""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from brain_service.errors import CancelledJobError
from brain_service.jobs.events import EventLog
from brain_service.jobs.job import Job, Lane, StageReport
from brain_service.jobs.kinds import parse_params, stages_of
from brain_service.jobs.params import TrainParams
from brain_service.jobs.table import JobTable
from brain_service.jobs.trainer import choose_trainer
from brain_service.settings import Settings
from brain_service.tracing import Tracing

__all__ = ["JobContext", "ParkedJob"]

log = logging.getLogger(__name__)

# Four reports a second are plenty for a person and little for a card.
REPORT_INTERVAL_S = 0.25


class ParkedJob(Exception):  # noqa: N818  a request, no error
    """Ends the worker of a job that has to wait: the runner wakes the job after `wait_s` seconds in `lane`."""

    def __init__(self, lane: Lane, wait_s: float) -> None:
        super().__init__(f"waits {wait_s:g} s for the {lane} lane")
        self.lane = lane
        self.wait_s = wait_s


class JobContext:
    """One running job, seen from its worker process.

    `result` holds what the finished stages returned, also those of an earlier attempt.
    """

    def __init__(self, settings: Settings, table: JobTable, job: Job, events: EventLog) -> None:
        self.settings = settings
        self.table = table
        self.job = job
        self.params = parse_params(job.kind, job.params)
        self.result: dict[str, Any] = dict(job.result)
        names = stages_of(job.kind, self.params)
        known = {report.name: report for report in job.stages}
        self.stages: dict[str, StageReport] = {name: known.get(name, StageReport(name)) for name in names}
        self._events = events
        self._fraction = job.progress
        self._span = (0.0, 1.0)
        self._reported_s = 0.0
        self._stop = job.cancel_requested
        self._tracing = Tracing.of(settings, "brain-jobs")

    @property
    def trainer(self) -> str:
        """Return who trains, `jax` or `pytorch`: as decided when the job was asked for, else as decided now.

        The decision is kept with the job, so that no later start takes another. It may ask the runtimes: seconds.

        Raises:
            InvalidError: the trainer that was asked for is not usable here.
            UnavailableError: none was asked for, and none is usable.
        """
        decided = self.job.trainer
        if decided is None or decided["trainer"] is None:
            assert isinstance(self.params, TrainParams)
            self.job = self.table.set_trainer(
                self.job.job_id, choose_trainer(self.params, self.settings).to_json()
            )
            decided = self.job.trainer
        assert decided is not None
        return str(decided["trainer"])

    def request_stop(self, *_: object) -> None:
        """Make `should_stop` true; also a signal handler."""
        self._stop = True

    def should_stop(self) -> bool:
        """Tell whether the job was asked to stop; long work asks this often."""
        return self._stop

    def check_stop(self) -> None:
        """End the stage here if the job was asked to stop.

        Raises:
            CancelledJobError: it was.
        """
        if self._stop:
            raise CancelledJobError(f"job {self.job.job_id} was asked to stop")

    def enter_stage(self, report: StageReport, span: tuple[float, float]) -> None:
        """Announce a stage and the part of the whole job's progress (two numbers in 0..1) that it covers."""
        again = self.stages[report.name].status == "running"
        self._span = span
        self._set(report)
        self._publish(span[0])
        if again:  # a stage that was parked: whoever follows it was told when it began
            return
        self._events.append("stage", name=report.name, status=report.status, command=report.command)
        log.info("stage %s starts", report.name)

    def leave_stage(self, report: StageReport, result: Mapping[str, Any]) -> None:
        """Record a stage's end; what it returned joins the job's result, durably."""
        self.result.update(result)
        self._set(report)
        self.trace(report)
        self._publish(self._span[1], self.result)
        self._events.append(
            "stage",
            name=report.name,
            status=report.status,
            details=report.details,
            duration_s=report.duration_s,
        )
        log.info("stage %s %s: %s", report.name, report.status, report.details)

    def trace(self, report: StageReport, failed: bool = False) -> None:
        """Tell the collector of traces, where there is one, of a stage that has ended."""
        if self._tracing is not None:
            attributes = {
                "brain.job_id": self.job.job_id,
                "brain.job_kind": self.job.kind,
                "brain.stage": report.name,
            }
            self._tracing.ended(f"stage {report.name}", report.duration_s or 0.0, attributes, failed=failed)

    def close(self) -> None:
        """Send what is left of traces."""
        if self._tracing is not None:
            self._tracing.close()

    def report(self, fraction: float, **metrics: Any) -> None:
        """Report the running stage: `fraction` of it in 0..1, and numbers worth plotting.

        A report less than `REPORT_INTERVAL_S` after the one before is dropped, unless the stage is through (1.0).

        Raises:
            CancelledJobError: the job was asked to stop.
        """
        self.check_stop()
        now_s = time.monotonic()
        if now_s - self._reported_s < REPORT_INTERVAL_S and fraction < 1.0:
            return
        self._reported_s = now_s
        start, stop = self._span
        self._publish(start + (stop - start) * min(max(fraction, 0.0), 1.0))
        if metrics:
            self._events.append("metrics", **metrics)

    def say(self, message: str) -> None:
        """Write a line for people, to the log and to whoever follows the events."""
        log.info(message)
        self._events.append("log", message=message)

    def parked(self, wait_s: float, details: str) -> ParkedJob:
        """Put `details` on the running stage and return what ends the worker until `wait_s` seconds are over.

        The stage is then run again from its start: it must find by itself what was done already.
        """
        self.tell(details)
        return ParkedJob("network", wait_s)

    def tell(self, details: str) -> None:
        """Put `details` on the running stage, and say them if they are new."""
        for report in list(self.stages.values()):
            if report.status == "running" and report.details != details:
                self._set(replace(report, details=details))
                self.say(details)
        self._publish(self._fraction)

    def pause(self, reason: str) -> None:
        """Show that the running stage rests, and why; an empty reason: that it goes on."""
        for report in list(self.stages.values()):
            if report.status == "running":
                self._set(replace(report, details=f"paused: {reason}" if reason else ""))
        self._publish(self._fraction)
        self._events.append("pause", paused=bool(reason), reason=reason)
        log.info("paused: %s" if reason else "goes on%s", reason)

    def fail_stage(self, reason: str) -> None:
        """Mark the running stage as failed, with the reason, before the job ends."""
        for report in list(self.stages.values()):
            if report.status == "running":
                self._set(replace(report, status="failed", details=reason))
                self.trace(report, failed=True)
                self._publish(self._fraction)
                self._events.append("stage", name=report.name, status="failed", details=reason)

    def _set(self, report: StageReport) -> None:
        self.stages[report.name] = report

    def _publish(self, fraction: float, result: Mapping[str, Any] | None = None) -> None:
        # A restarted job passes over what it had reached: its bar stands, it never runs back.
        self._fraction = max(self._fraction, fraction)
        self.table.progress(self.job.job_id, self._fraction, list(self.stages.values()), result)
        self._events.append("progress", progress=self._fraction)
