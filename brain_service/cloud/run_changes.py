"""How a run's record changes by what was seen and decided; pure functions of the old record."""

import time
from dataclasses import asdict, replace

from brain_service.cloud.judging import Verdict
from brain_service.cloud.launchers import Capacity
from brain_service.cloud.moments import elapsed_s, moment
from brain_service.cloud.run_status import RunStatus
from brain_service.cloud.run_table import ENDED, RunRecord

__all__ = [
    "GONE",
    "beaten",
    "claimed",
    "ended",
    "is_paused",
    "next_attempt",
    "noted",
    "paused",
    "released",
    "running_s",
]

GONE = ("succeeded", "failed", "preempted", "stopped")
_FIRST_PAUSE_S = 15.0
_LONGEST_PAUSE_S = 900.0


def running_s(record: RunRecord) -> float:
    """Return the running time of all attempts in seconds, as far as it is known."""
    if record.since_ns is None or record.seen_ns is None:
        return record.past_s
    return record.past_s + max(0.0, (record.seen_ns - record.since_ns) / 1e9)


def noted(old: RunRecord, capacity: Capacity) -> RunRecord:
    """Store which capacity it is, and since when it runs or is waited for."""
    now_ns, runs = time.time_ns(), capacity.phase == "running"
    seen_ns: int | None = now_ns
    if capacity.phase in GONE:
        # Where the service does not tell when it went: when it last gave a sign.
        signs = [old.seen_ns or 0, old.beat_ns if old.beat_ns and old.beat_ns != old.old_beat_ns else 0]
        seen_ns = capacity.ended_ns or max(signs) or None
    return replace(
        old,
        state="running" if runs else old.state,
        capacity=capacity.name,
        attempt=max(old.attempt, capacity.attempt or 0),
        asked_at=None,
        paused_at=None,
        blind_at=None,
        fruitless=0 if runs else old.fruitless,
        since_ns=capacity.running_since_ns or old.since_ns or (now_ns if runs else None),
        seen_ns=seen_ns,
        beat_at=moment() if runs and old.since_ns is None else old.beat_at,
        waiting_at=None if runs else old.waiting_at or moment(),
    )


def beaten(old: RunRecord, status: RunStatus) -> RunRecord:
    """Store a heartbeat, and when it changed."""
    if status.updated_ns == old.beat_ns:
        return old
    before = old.status or {}
    moved = (before.get("phase"), before.get("step")) != (status.phase, status.step) or old.moved_at is None
    mark = moment()
    return replace(
        old,
        beat_ns=status.updated_ns,
        beat_at=mark,
        moved_at=mark if moved else old.moved_at,
        status=asdict(status),
    )


def claimed(old: RunRecord, seen: RunRecord, mark: str) -> RunRecord:
    """Store that a machine is about to be asked for, unless someone else asked or adopted since `seen`."""
    if old.state in ENDED or (old.asked_at, old.capacity, old.attempt) != (seen.asked_at, None, seen.attempt):
        return old
    return replace(old, asked_at=mark)


def paused(old: RunRecord, detail: str) -> RunRecord:
    """Store that there was no machine to be had; each time the next asking waits longer."""
    return replace(old, asked_at=None, paused_at=moment(), fruitless=old.fruitless + 1, detail=detail)


def is_paused(record: RunRecord) -> bool:
    """Tell whether it is too early to ask again."""
    if record.paused_at is None or not record.fruitless:
        return False
    return elapsed_s(record.paused_at) < min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (record.fruitless - 1))


def next_attempt(old: RunRecord, verdict: Verdict, names: tuple[str, ...]) -> RunRecord:
    """Store that the run goes on with another machine, once those named are gone."""
    return replace(
        old,
        state="waiting",
        detail=verdict.detail,
        attempt=old.attempt + 1,
        starts=old.starts + (1 if verdict.ran else 0),
        fruitless=0 if verdict.ran else old.fruitless + 1,
        capacity=None,
        asked_at=None,
        paused_at=None if verdict.ran else moment(),
        waiting_at=moment() if verdict.ran or old.waiting_at is None else old.waiting_at,
        past_s=running_s(old),
        since_ns=None,
        seen_ns=None,
        beat_at=None,
        moved_at=None,
        old_beat_ns=old.beat_ns,
        old_starts=int(old.status["attempt"]) if old.status else old.old_starts,
        release=(*old.release, *names),
    )


def released(old: RunRecord, name: str) -> RunRecord:
    """Store that a capacity was stopped."""
    return replace(old, release=tuple(other for other in old.release if other != name))


def ended(old: RunRecord, verdict: Verdict, names: tuple[str, ...]) -> RunRecord:
    """Store how the run ended, and what is to be stopped."""
    return replace(
        old,
        state="done" if verdict.kind == "done" else "failed",
        detail=verdict.detail,
        error=verdict.error,
        release=(*old.release, *(name for name in names if name not in old.release)),
    )
