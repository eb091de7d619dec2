"""One job as the table stores it and HTTP shows it."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

__all__ = [
    "ENDED",
    "LANES",
    "STATES",
    "Activation",
    "EndState",
    "Job",
    "JobPage",
    "JobState",
    "Lane",
    "StageReport",
    "StageStatus",
]

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
EndState = Literal["succeeded", "failed", "cancelled"]
StageStatus = Literal["pending", "running", "done", "skipped", "failed", "cancelled"]

Lane = Literal["work", "network"]
"""What a stage needs: this machine (one at a time), or the network, for which hours may pass."""

LANES: tuple[Lane, ...] = get_args(Lane)
STATES: tuple[str, ...] = get_args(JobState)
ENDED: tuple[str, ...] = get_args(EndState)


@dataclass(frozen=True, slots=True)
class StageReport:
    """What one stage of a job did: `details` in a sentence, `command` to run the same by hand.

    `duration_s` counts from `started_ns`, waits included.
    """

    name: str
    status: StageStatus = "pending"
    details: str = ""
    duration_s: float | None = None
    command: str | None = None
    started_ns: int | None = None

    def ended(self, status: StageStatus) -> "StageReport":
        """Return the report as it stands once the job is over: what was running takes `status`."""
        return replace(self, status=status) if self.status == "running" else self


@dataclass(frozen=True, slots=True)
class Job:
    """A row of the job table.

    `progress` runs from 0 to 1 and never falls, `attempt` counts the starts (1 = the first), `result` grows by
    the finished stages, `error` is a problem document (RFC 9457) of a failed job. Times are int64 nanoseconds
    since the epoch; `cancel_requested` is set until the worker of a cancelled job is gone. `trainer` is who trains
    and why (`hardware.TrainerChoice.to_json`), decided when the job was asked for; None where nothing is trained.
    """

    job_id: str
    kind: str
    state: JobState
    progress: float
    stages: tuple[StageReport, ...]
    result: dict[str, Any]
    error: dict[str, Any] | None
    created_ns: int
    started_ns: int | None
    finished_ns: int | None
    attempt: int
    params: dict[str, Any]
    cancel_requested: bool = False
    trainer: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the body of `GET /jobs/{id}`."""
        return asdict(self)


class JobPage(NamedTuple):
    """Some jobs, newest first, and the cursor of the next page (None on the last)."""

    jobs: tuple[Job, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Activation:
    """A job's request that the daemon serve a model: `pending` until it answered `done` or `failed`."""

    activation_id: int
    model_id: str
    job_id: str
    state: Literal["pending", "done", "failed", "withdrawn"]
    detail: str
