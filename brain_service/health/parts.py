"""The checks of what acts and what waits: latency, backends, Hailo, the model's age, queues, the last error."""

import time
from collections.abc import Mapping
from typing import Any

from brain_service.hardware.hailo_versions import HailoVersions
from brain_service.health.check import Check

__all__ = [
    "backends_check",
    "hailo_check",
    "last_error_check",
    "latency_check",
    "model_check",
    "queue_check",
    "uploads_check",
]

HAILO_WARM_C = 90.0  # the chip halves its clock at 104 C
ERROR_RECENT_S = 300.0
_DAY_S = 86_400.0


def latency_check(status: Mapping[str, Any], deadline_ms: float) -> Check:
    """p99 of an answered action in milliseconds over the last 1024, against the deadline that requests get."""
    p99_us = status["total_us"]["p99"]
    missed = int(status.get("deadline_misses", 0))
    told = f"{missed} deadlines missed since the start" if missed else ""
    if p99_us is None:
        return Check("pass", None, "ms", told or "no action was asked for yet", deadline_ms)
    p99_ms = round(p99_us / 1e3, 3)
    if p99_ms > deadline_ms:
        reason = "; ".join(filter(None, ("one action in a hundred comes too late", told)))
        fix = "use a smaller model or a faster backend (GET /models tells which and why)"
        return Check("warn", p99_ms, "ms", reason, deadline_ms, fix)
    return Check("pass", p99_ms, "ms", told, deadline_ms)


def backends_check(status: Mapping[str, Any]) -> Check:
    """Which backend computes, and of every other why it does not."""
    why = status.get("why", ())
    said = "; ".join(f"{each['backend']}: {each['reason']}" for each in why)
    stands_in = [text for text in status.get("warnings", ()) if text.startswith("backend ")]
    if stands_in:
        fix = "it is tried again by itself; GET /models tells when"
        return Check("warn", status.get("backend"), "", "; ".join(stands_in), fix=fix)
    return Check("pass", status.get("backend"), "", said or "no model is loaded")


def hailo_check(
    obstacle: str | None, present: bool, versions: HailoVersions, telemetry: Mapping[str, Any] | None
) -> Check:
    """A Hailo's parts and its temperature in degrees Celsius; a machine without one passes.

    `obstacle` tells why one that is there cannot be used, `telemetry` is what a worker that uses it measured.
    """
    if not present:
        return Check("pass", None, "C", "not present")
    seen = telemetry or {}
    parts = {
        "driver": versions.driver,
        "library": versions.library or seen.get("runtime"),
        "firmware": seen.get("firmware") or ", ".join(versions.firmware_files) or None,
        "chip": seen.get("architecture"),
    }
    told = ", ".join(f"{name} {value}" for name, value in parts.items() if value)
    now_c = seen.get("temperature_c")
    if versions.mismatch:
        fix = "sudo apt install --reinstall hailo-all && sudo reboot"
        return Check("warn", now_c, "C", f"{versions.mismatch} ({told})", fix=fix)
    if obstacle:
        return Check("warn", now_c, "C", f"{obstacle} ({told})" if told else obstacle, fix="brain doctor")
    if seen.get("warning"):
        return Check("warn", now_c, "C", f"{seen['warning']} ({told})", HAILO_WARM_C)
    return Check("pass", now_c, "C", told, HAILO_WARM_C)


def model_check(created_ns: int | None, model_id: str | None, now_s: float | None = None) -> Check:
    """Age of the active model in days."""
    if model_id is None:
        return Check("pass", None, "days", "no model is active")
    if not created_ns:
        return Check("pass", None, "days", f"model {model_id} does not tell when it was made")
    age_s = (time.time() if now_s is None else now_s) - created_ns / 1e9
    return Check("pass", round(max(age_s, 0.0) / _DAY_S, 2), "days", f"model {model_id}")


def queue_check(counts: Mapping[tuple[str, str], int]) -> Check:
    """Jobs that wait; how many run, and how many of those that are remembered failed."""
    by_state: dict[str, int] = {}
    for (_, state), count in counts.items():
        by_state[state] = by_state.get(state, 0) + count
    told = ", ".join(f"{by_state[state]} {state}" for state in ("running", "failed") if by_state.get(state))
    return Check("pass", by_state.get("queued", 0), "jobs", told)


def uploads_check(counts: Mapping[str, int]) -> Check:
    """Uploads that wait. The cloud may be away for days: none of this is a fault of the robot, and none fails."""
    failed = counts.get("failed", 0)
    waiting = sum(counts.values()) - failed
    if failed:
        return Check("warn", waiting, "uploads", f"{failed} failed", fix="POST /upload tries again")
    return Check("pass", waiting, "uploads")


def last_error_check(last: tuple[float, str] | None, now_s: float | None = None) -> Check:
    """Seconds since the last error in the daemon's log; one of the last five minutes warns."""
    if last is None:
        return Check("pass", None, "s", "none since the start", ERROR_RECENT_S)
    age_s = round((time.monotonic() if now_s is None else now_s) - last[0], 1)
    recent = age_s < ERROR_RECENT_S
    fix = "journalctl -u continuon-brain -p err" if recent else ""
    return Check("warn" if recent else "pass", age_s, "s", last[1][:500], ERROR_RECENT_S, fix)
