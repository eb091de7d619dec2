"""Every check of `/health`, on the parts' own reports."""

from collections.abc import Mapping
from typing import Any

from brain_service.api.services import Services
from brain_service.health.check import Check
from brain_service.health.checks import (
    capture_check,
    disk_check,
    episodes_check,
    inference_check,
    jobs_check,
    lost_history,
    memory_check,
    misplaced_files,
    recording_check,
    wear_check,
)
from brain_service.health.host import event_loop_check, host_checks, write_latency_check
from brain_service.health.parts import (
    backends_check,
    hailo_check,
    last_error_check,
    latency_check,
    model_check,
    queue_check,
    uploads_check,
)
from brain_service.health.queues import job_counts, pending_uploads
from brain_service.logs import LOGGED

__all__ = ["gather_checks", "hailo_telemetry"]


def gather_checks(
    services: Services, inference: Mapping[str, Any], recording: tuple[int, str]
) -> dict[str, Check]:
    """Run every check; asks the file system, so keep it off an event loop.

    `inference` is the router's status and `recording` the recorder's failed steps with the last reason, both taken
    on the event loop, where they live.
    """
    settings = services.settings
    capture = services.store.status()
    jobs = jobs_check(
        services.runner.status() | ({"absent": "no job runs in safe mode"} if services.safe_mode else {}),
        services.jobs.problem(),
        misplaced_files(settings),
        lost_history(settings.database, services.started_ns),
    )
    checks = {
        "disk": disk_check(settings.data_dir, settings.capture.min_free_bytes),
        "write_latency": write_latency_check(services.vitals.disk.view()),
        "memory": memory_check(),
        **host_checks(settings.gates.sysfs, newest=(settings.database, settings.episodes_dir)),
        "event_loop": event_loop_check(services.vitals.loop_lag.worst_s),
        "capture": capture_check(capture, settings.capture.sync_interval_s),
        "episodes": episodes_check(capture),
        "wear": wear_check(capture["wear"]),
        "recording": recording_check(*recording),
        "inference": inference_check(inference),
        "latency": latency_check(inference, settings.inference.deadline_ms),
        "backends": backends_check(inference),
        "hailo": _hailo(services, inference),
        "model": model_check(inference["active_created_ns"], inference["active_model"]),
        "jobs": jobs,
        "queue": queue_check(job_counts(settings.database)),
        "uploads": uploads_check(pending_uploads(settings.database)),
        "last_error": last_error_check(LOGGED.last_error),
    }
    if services.tokens is not None:
        checks["tokens"] = services.tokens.check()
    if services.safe_mode:
        checks["start"] = Check("warn", "safe mode", "", services.safe_mode)
    if services.audit.problem:
        checks["audit"] = Check("warn", None, "", services.audit.problem)
    return checks


def hailo_telemetry(inference: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what a worker that computes on a Hailo measured of it, if there is one."""
    for model in inference["models"]:
        for engine in model["why"]:
            if engine.get("device") == "hailo" and engine.get("telemetry"):
                found: Mapping[str, Any] = engine["telemetry"]
                return found
    return None


def _hailo(services: Services, inference: Mapping[str, Any]) -> Check:
    found = services.vitals.hailo.view()
    telemetry = hailo_telemetry(inference)
    obstacle = None if telemetry else found.obstacle
    return hailo_check(obstacle, found.present or telemetry is not None, found.versions, telemetry)
