"""The snapshot's parts: what each room tells of itself, cut down to what the page shows."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import psutil

from brain_service.hardware.thermals import Sensors
from brain_service.inference.calls import SessionInfo
from brain_service.jobs.job import ENDED, Job
from brain_service.settings import Settings

__all__ = ["capture_part", "inference_part", "job_part", "machine_part", "model_part", "sessions_part", "strain"]

SHOWN_SESSIONS = 12

_INFERENCE = (
    *("state", "ready", "active_model", "previous_model", "backend", "error", "safe_mode", "warnings", "canary"),
    *("total_us", "compute_us", "deadline_misses", "nonfinite_answers", "worker_restarts", "probation"),
)
_SESSION = ("session_id", "model_id", "backend", "next_step", "idle_s", "age_s")
_EVALUATION = ("relative_rmse", "baseline_relative_rmse", "skill", "episodes", "steps")
_STAGE = ("name", "status", "details", "duration_s")


def inference_part(status: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return model, backends with the reason for each, and latencies in microseconds beside the deadline."""
    active: Mapping[str, Any] = next((model for model in status["models"] if model["role"] == "active"), {})
    decisions = [{name: why[name] for name in ("device", "backend", "used", "reason")} for why in status["why"]]
    return {name: status[name] for name in _INFERENCE} | {
        "deadline_ms": settings.inference.deadline_ms,
        "why": decisions,
        "standby": active.get("standby"),
        "telemetry": active.get("telemetry"),
        "rollbacks": status["rollbacks"][-3:],
    }


def sessions_part(sessions: Sequence[SessionInfo], settings: Settings) -> dict[str, Any]:
    """Return the number of live sessions, their bound, and those that asked last."""
    latest = sorted(sessions, key=lambda session: session.idle_s)[:SHOWN_SESSIONS]
    return {
        "count": len(sessions),
        "max": settings.inference.max_sessions,
        "latest": [{name: getattr(session, name) for name in _SESSION} for session in latest],
    }


def capture_part(status: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return open episodes, durable lag in seconds, disk in bytes, and what capture writes a day; blocking."""
    try:
        total_bytes: int | None = shutil.disk_usage(settings.data_dir).total
    except OSError:
        total_bytes = None
    counts = status["catalogue"]
    return {
        "open_episodes": status["open_episodes"],
        "unsynced_s": round(status["unsynced_s"], 3),
        "unsynced_steps": status["unsynced_steps"],
        "sync_interval_s": settings.capture.sync_interval_s,
        "free_bytes": status["free_bytes"],
        "min_free_bytes": status["min_free_bytes"],
        "total_bytes": total_bytes,
        "bytes_today": status["wear"]["bytes_today"],
        "bytes_per_day": status["wear"]["bytes_per_day"],
        "episodes": counts.get("total", 0),
        "unconverted": counts.get("unconverted", 0),
        "damaged": len(status["damaged"]),
        "last_error": status["last_error"],
    }


def job_part(job: Job, now_ns: int) -> dict[str, Any]:
    """Return one job, wherever it runs: state, where, stages, progress and the seconds that are left.

    The time left is judged by the progress so far, None before a twentieth of it.
    """
    eta_s = None
    if job.state == "running" and job.started_ns is not None and job.progress >= 0.05:
        eta_s = round((now_ns - job.started_ns) / 1e9 * (1 - job.progress) / job.progress, 1)
    return {
        "job_id": job.job_id,
        "kind": job.kind,
        "state": job.state,
        "target": job.params.get("target", "local"),
        "progress": round(job.progress, 4),
        "stages": [{name: getattr(stage, name) for name in _STAGE} for stage in job.stages],
        "error": (job.error or {}).get("detail"),
        "created_ns": job.created_ns,
        "started_ns": job.started_ns,
        "finished_ns": job.finished_ns,
        "attempt": job.attempt,
        "cancel_requested": job.cancel_requested and job.state not in ENDED,
        "eta_s": eta_s,
    }


def model_part(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return one bundle as the table of candidates shows it, with its evaluation and the verdict on it."""
    found = model.get("evaluation") or {}
    evaluation = {name: found[name] for name in _EVALUATION if name in found}
    closed_loop, promotion = found.get("closed_loop") or {}, found.get("promotion") or {}
    return {
        "model_id": model["model_id"],
        "created_ns": model["created_ns"],
        "role": model["role"],
        "error": model["error"],
        "rejected": (model["rejected"] or {}).get("evidence") if model.get("rejected") else None,
        "size_bytes": model.get("size_bytes"),
        "evaluation": evaluation or None,
        "success_rate": closed_loop.get("success_rate"),
        "promotion": {name: promotion.get(name) for name in ("promoted", "reason", "growth")}
        if promotion
        else None,
    }


def machine_part(sensors: Sensors, settings: Settings) -> dict[str, Any]:
    """Return heat, supply, memory and load, each None where the machine has no such sensor."""
    memory = psutil.virtual_memory()
    return asdict(sensors) | {
        "max_temperature_c": settings.gates.max_temperature_c,
        "min_battery_share": settings.gates.min_battery_share,
        "memory_used_bytes": memory.total - memory.available,
        "memory_total_bytes": memory.total,
        "cpu_percent": psutil.cpu_percent(),
        "cpus": psutil.cpu_count() or 1,
    }


def strain(sensors: Sensors, settings: Settings) -> str:
    """Return what is wrong with heat and supply, and the fix; empty where they are well or nobody knows."""
    limit_c, now_c = settings.gates.max_temperature_c, sensors.temperature_c
    found = []
    if sensors.under_voltage:
        found.append("under-voltage, the supply is too weak: use the supply that the board asks for")
    if limit_c is not None and now_c is not None and now_c >= limit_c:
        found.append(f"{now_c:.0f} C, learning rests from {limit_c:.0f} C on: give it air or a fan")
    return "; ".join(found)
