"""What is to be done about a run, by its capacity and its heartbeat. Makes no calls, has no clock of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from brain_service.cloud.launchers import Capacity
from brain_service.cloud.run_status import EXIT_REFUSED, RunStatus
from brain_service.cloud.run_table import RunRecord
from brain_service.errors import (
    BrainError,
    ConfigError,
    DeadlineExceededError,
    InvalidError,
    TooManyError,
    UnavailableError,
)
from brain_service.settings import CloudSettings

__all__ = ["Facts", "Verdict", "judge"]

# A run that says it was told to go is given this long to vanish, or to be brought back by its service.
_GOING_S = 60.0
_ENDED = ("succeeded", "failed", "preempted", "stopped")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that counts. `quiet_s` is since the heartbeat changed or the capacity began to run, `still_s` since
    the run moved on: a thread writes the heartbeat, which goes on while a step hangs."""

    record: RunRecord
    capacity: Capacity
    status: RunStatus | None
    status_trouble: BrainError | None
    cost_usd: float
    running_s: float
    quiet_s: float
    still_s: float
    waited_s: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`again` asks for the next attempt; `ran` tells whether this one got a machine."""

    kind: Literal["wait", "done", "fail", "again"]
    detail: str
    error: Mapping[str, Any] | None = None
    ran: bool = True


def judge(facts: Facts, settings: CloudSettings) -> Verdict:
    """Return what follows."""
    return _finished(facts) or _bounds(facts, settings) or _interrupted(facts, settings) or _waiting(facts)


def _finished(facts: Facts) -> Verdict | None:
    status, capacity = facts.status, facts.capacity
    if status is not None and status.phase == "done":
        return Verdict(kind="done", detail=f"done after {status.step} steps")
    own = _own(facts)
    if own is not None and own.phase == "failed":
        error = own.error or BrainError("the run failed and did not say why; see its log").problem()
        return Verdict(kind="fail", detail=str(error.get("detail", "the run failed")), error=error)
    if isinstance(facts.status_trouble, InvalidError):
        return _fail(facts.status_trouble)
    if capacity.problem is not None:
        return Verdict(kind="fail", detail=str(capacity.problem.get("detail")), error=capacity.problem)
    if capacity.exit_code == EXIT_REFUSED and facts.status_trouble is None:
        return _fail(ConfigError(f"the run refused to start ({capacity.detail}); see its log"))
    return None


def _bounds(facts: Facts, settings: CloudSettings) -> Verdict | None:
    request = facts.record.request
    if facts.cost_usd > settings.max_cost_usd:
        return _fail(
            TooManyError(
                f"stopped at {facts.cost_usd:.2f} USD by list price, over cloud.max_cost_usd = "
                f"{settings.max_cost_usd:.2f}; its checkpoints stay in {request.output_dir}: raise the cap and "
                "train again with the same output directory"
            )
        )
    if facts.running_s > request.max_run_s:
        return _fail(
            DeadlineExceededError(
                f"stopped after running for {facts.running_s:.0f} s, over max_run_s = {request.max_run_s:.0f}; "
                f"its checkpoints stay in {request.output_dir}: raise cloud.max_run_s, or train fewer steps"
            )
        )
    return None


def _interrupted(facts: Facts, settings: CloudSettings) -> Verdict | None:
    capacity, own = facts.capacity, _own(facts)
    ran = facts.record.since_ns is not None or own is not None
    if capacity.phase in _ENDED or capacity.exit_code is not None:
        if facts.status_trouble is not None:
            # How it ended stands in a heartbeat that cannot be read now.
            return None
        if not ran and _waits_too_long(facts):
            return _too_long(facts)
        return _again(facts, settings, capacity.detail, ran=ran)
    going = own is not None and own.phase == "preempted" and capacity.phase == "running"
    if going and facts.quiet_s > min(_GOING_S, settings.stall_timeout_s):
        return _again(facts, settings, f"the run was told to go ({capacity.detail})")
    runs = capacity.phase == "running" or (capacity.phase == "unknown" and ran)
    if runs and facts.quiet_s > settings.stall_timeout_s and facts.status_trouble is None:
        return _again(
            facts, settings, f"no heartbeat for {facts.quiet_s:.0f} s while its machines run ({capacity.detail})"
        )
    if runs and own is not None and own.phase == "training" and facts.still_s > settings.stall_timeout_s:
        return _again(facts, settings, f"stuck at step {own.step} for {facts.still_s:.0f} s ({capacity.detail})")
    if not runs and _waits_too_long(facts):
        return _too_long(facts)
    return None


def _again(facts: Facts, settings: CloudSettings, why: str, *, ran: bool = True) -> Verdict:
    record = facts.record
    if ran and record.starts + 1 >= settings.max_attempts:
        return _fail(
            UnavailableError(
                f"given up after {settings.max_attempts} attempts (cloud.max_attempts), the last one: {why}; its "
                f"checkpoints stay in {record.request.output_dir}"
            )
        )
    return Verdict(kind="again", detail=f"attempt {record.attempt}: {why}", ran=ran)


def _waits_too_long(facts: Facts) -> bool:
    return facts.waited_s > facts.record.request.max_wait_s


def _too_long(facts: Facts) -> Verdict:
    request = facts.record.request
    tier = "Spot machines are scarce: set cloud.spot to false, or " if request.spot else ""
    return _fail(
        UnavailableError(
            f"no machines for {request.topology} in {facts.waited_s:.0f} s (max_wait_s = "
            f"{request.max_wait_s:.0f}, {facts.capacity.detail}); {tier}take another cloud.zone or cloud.region, "
            "a smaller cloud.topology, or raise cloud.max_wait_s"
        )
    )


def _waiting(facts: Facts) -> Verdict:
    detail = facts.capacity.detail
    if facts.status_trouble is not None:
        detail = f"{detail}; heartbeat: {facts.status_trouble.detail}"
    elif (own := _own(facts)) is not None:
        detail = f"{own.phase}, step {own.step} of {own.steps} ({detail})"
    return Verdict(kind="wait", detail=detail)


def _own(facts: Facts) -> RunStatus | None:
    """Return the heartbeat if the present attempt wrote it; the last word of one before may come late."""
    status, record = facts.status, facts.record
    if status is None or status.updated_ns == record.old_beat_ns or status.attempt <= record.old_starts:
        return None
    return status


def _fail(error: BrainError) -> Verdict:
    return Verdict(kind="fail", detail=error.detail, error=error.problem())
