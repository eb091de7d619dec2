"""What `/metrics` shows, family by family; docs/operations-health.md explains each.

No label holds anything that grows with use: no session, episode, job or request. A model's id appears in
`brain_model_info` alone, for the models that are loaded now.
"""

import contextlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil

import brain_service
from brain_service.api.health_report import gather_checks, hailo_telemetry
from brain_service.api.request_metrics import HttpMetrics
from brain_service.api.services import Services
from brain_service.hardware.thermals import read_sensors
from brain_service.hardware.throttling import read_throttling, vcgencmd_word
from brain_service.health.check import Check, Status
from brain_service.health.queues import job_counts, pending_uploads
from brain_service.health.training import training_now
from brain_service.jobs.job import STATES
from brain_service.jobs.kinds import KINDS
from brain_service.logs import LOGGED
from brain_service.metrics import Page

__all__ = ["Live", "metrics_page"]

_STATUS: Mapping[Status, int] = {"pass": 0, "warn": 1, "fail": 2}
_THROTTLING = ("under-voltage", "clock capped", "throttled", "soft temperature limit")


@dataclass(frozen=True)
class Live:
    """What was read on the event loop: the router's status, the recorder's failures, open WebSockets by route."""

    inference: Mapping[str, Any]
    recording: tuple[int, str]
    websockets: Mapping[str, int]


def metrics_page(services: Services, http: HttpMetrics, live: Live) -> bytes:
    """Return the page; asks the file system, so keep it off an event loop."""
    page = Page()
    capture = services.store.status()
    checks = gather_checks(services, live.inference, live.recording)
    _process(page, services)
    _http(page, http, live)
    _inference(page, services, live.inference)
    _models(page, services, live.inference)
    _capture(page, services, capture, live.recording[0])
    _disk(page, services, capture)
    _jobs(page, services)
    _machine(page, services, live.inference, checks)
    _checks(page, checks)
    return page.render()


def _process(page: Page, services: Services) -> None:
    build = {"version": brain_service.__version__, "python": platform.python_version()}
    page.gauge("brain_build_info", "The program's version.", [(build, 1)])
    page.gauge("brain_start_time_seconds", "When the daemon started, since the epoch.", services.started_ns / 1e9)
    me = psutil.Process()
    with contextlib.suppress(psutil.Error), me.oneshot():
        times = me.cpu_times()
        page.counter(
            "process_cpu_seconds_total", "Processor time of the daemon's own process.", times.user + times.system
        )
        page.gauge("process_resident_memory_bytes", "Memory of the daemon's own process.", me.memory_info().rss)
        page.gauge("process_open_fds", "Open files of the daemon's own process.", me.num_fds())
        page.gauge("process_threads", "Threads of the daemon's own process.", me.num_threads())
    lag = services.vitals.loop_lag.durations
    page.histogram("brain_event_loop_lag_seconds", "How late the event loop came to what was due.", lag)
    page.counter(
        "brain_log_records_total",
        "Lines of the daemon's log, by level.",
        [({"level": level}, count) for level, count in LOGGED.by_level.items()],
    )


def _http(page: Page, http: HttpMetrics, live: Live) -> None:
    page.histograms(http.durations)
    page.gauge(
        "brain_http_websockets",
        "Open WebSockets by route.",
        [({"route": route}, count) for route, count in live.websockets.items()],
    )


def _inference(page: Page, services: Services, status: Mapping[str, Any]) -> None:
    settings = services.settings.inference
    page.histograms(services.router.durations)
    page.gauge(
        "brain_infer_deadline_seconds", "The deadline of a request that names none.", settings.deadline_ms / 1e3
    )
    page.counter(
        "brain_infer_deadline_misses_total",
        "Steps that were not answered before their deadline.",
        status["deadline_misses"],
    )
    page.counter(
        "brain_infer_nonfinite_total",
        "Steps whose action was not finite; none was sent.",
        status["nonfinite_answers"],
    )
    page.counter(
        "brain_infer_retried_total",
        "Steps that a second worker computed after the first died.",
        status["retried_steps"],
    )
    page.gauge("brain_infer_ready", "Whether an action would be answered now.", status["ready"])
    page.gauge("brain_sessions", "Live sessions.", status["sessions"])
    page.gauge("brain_sessions_limit", "Most sessions at a time.", settings.max_sessions)
    page.counter(
        "brain_sessions_evicted_total", "Sessions that ended because they idled.", status["evicted_sessions"]
    )


def _models(page: Page, services: Services, status: Mapping[str, Any]) -> None:
    loaded = status["models"]
    page.gauge(
        "brain_model_info",
        "The loaded models: id, role, and the backend that computes their steps.",
        [
            (
                {
                    "model_id": str(model["model_id"]),
                    "role": str(model["role"] or "draining"),
                    "backend": str(model["backend"] or "none"),
                },
                1,
            )
            for model in loaded
        ],
    )
    created_ns = status["active_created_ns"]
    page.gauge(
        "brain_model_created_timestamp_seconds",
        "When the active model was made, since the epoch.",
        created_ns / 1e9 if created_ns else None,
    )
    used = {str(each["backend"]): bool(each["used"]) for each in status["why"]}
    page.gauge(
        "brain_backend_used",
        "Whether a backend computes the active model's steps; GET /models tells why not.",
        [({"backend": backend}, value) for backend, value in used.items()],
    )
    page.gauge("brain_safe_mode", "Whether another model stands in for the active one.", bool(status["safe_mode"]))
    page.counter(
        "brain_model_rollbacks_total", "Models that were rolled back by themselves.", len(status["rollbacks"])
    )
    restarts = {str(model["model_id"]): float(model["worker_restarts"]) for model in loaded}
    page.counter(
        "brain_worker_restarts_total",
        "Inference workers that were started again.",
        services.restarts.take(restarts),
    )


def _capture(page: Page, services: Services, status: Mapping[str, Any], failed_steps: int) -> None:
    counts = status["catalogue"]
    page.counter("brain_capture_steps_total", "Steps that were accepted.", status["total_steps"])
    page.counter(
        "brain_capture_written_bytes_total", "Bytes that capture handed to the file system.", status["total_bytes"]
    )
    page.gauge(
        "brain_capture_durable_lag_seconds",
        "Age of the oldest accepted step that is not on the medium.",
        status["unsynced_s"],
    )
    page.gauge(
        "brain_capture_unsynced_steps", "Accepted steps that are not on the medium.", status["unsynced_steps"]
    )
    page.gauge("brain_capture_queued_bytes", "Bodies of steps that wait to be taken in.", status["queued_bytes"])
    page.gauge("brain_capture_failing", "Whether the medium refuses steps.", bool(status["last_error"]))
    page.histogram(
        "brain_capture_flush_duration_seconds",
        "How long a flush of an episode to the medium took.",
        services.store.flush_durations,
    )
    page.counter("brain_capture_unrecorded_steps_total", "Policy steps that could not be recorded.", failed_steps)
    page.gauge("brain_episodes_open", "Episodes that take steps.", status["open_episodes"])
    page.gauge("brain_episodes", "Episodes on the medium.", counts.get("total"))
    page.gauge("brain_episodes_unconverted", "Episodes that no dataset holds.", counts.get("unconverted"))
    page.gauge("brain_episodes_damaged", "Episodes that cannot be read.", len(status["damaged"]))


def _disk(page: Page, services: Services, status: Mapping[str, Any]) -> None:
    page.gauge("brain_disk_free_bytes", "Free space where the data lies.", status["free_bytes"])
    page.gauge(
        "brain_disk_reserved_bytes", "Below this much free space no step is taken.", status["min_free_bytes"]
    )
    page.histogram(
        "brain_disk_write_duration_seconds",
        "How long one small durable write took, asked once a minute.",
        services.vitals.disk.durations,
    )
    page.gauge(
        "brain_wear_bytes_per_day",
        "Bytes a day at capture's pace of the last hour.",
        status["wear"]["bytes_per_day"],
    )


def _jobs(page: Page, services: Services) -> None:
    database = services.settings.database
    runner = services.runner.status()
    # Also those that are none: what appears out of nowhere has no growth for an alert to see.
    counts = {(kind, state): 0 for kind in KINDS for state in STATES} | job_counts(database)
    page.gauge(
        "brain_jobs",
        "Jobs that are remembered, by kind and state.",
        [({"kind": kind, "state": state}, count) for (kind, state), count in counts.items()],
    )
    page.gauge("brain_runner_up", "Whether the job runner runs.", bool(runner["alive"]))
    page.counter("brain_runner_restarts_total", "Times the job runner was started again.", runner["restarts"])
    training = training_now(database, services.settings.jobs_dir)
    page.gauge("brain_training_step", "Step of the training that runs.", training.get("step"))
    page.gauge("brain_training_steps", "Steps that it is to take.", training.get("steps"))
    page.gauge("brain_training_loss", "Its loss.", training.get("loss"))
    page.gauge("brain_training_steps_per_second", "Its pace.", training.get("steps_per_s"))
    uploads = pending_uploads(database)
    waiting = sum(count for state, count in uploads.items() if state != "failed")
    page.gauge("brain_uploads_pending", "Uploads that wait.", waiting)
    page.gauge("brain_uploads_failed", "Uploads that were given up.", uploads.get("failed", 0))


def _machine(page: Page, services: Services, inference: Mapping[str, Any], checks: Mapping[str, Check]) -> None:
    sysfs = services.settings.gates.sysfs
    sensors = read_sensors(sysfs)
    page.gauge("brain_temperature_celsius", "The hottest thermal zone.", sensors.temperature_c)
    hailo = hailo_telemetry(inference) or {}
    page.gauge("brain_hailo_temperature_celsius", "The Hailo's chip.", hailo.get("temperature_c"))
    page.gauge("brain_under_voltage", "Whether the supply is too weak.", sensors.under_voltage)
    throttling = read_throttling(sysfs, vcgencmd_word)
    if throttling is not None:
        page.gauge(
            "brain_throttled",
            "What the firmware holds back now.",
            [({"reason": reason}, reason in throttling.now) for reason in _THROTTLING],
        )
    synchronised = {"synchronised": 1, "not synchronised": 0}.get(str(checks["clock"].observed_value))
    page.gauge("brain_clock_synchronised", "Whether a time server set the clock.", synchronised)
    page.gauge(
        "brain_memory_available_bytes", "Memory that the machine has left.", psutil.virtual_memory().available
    )
    page.gauge(
        "brain_load_per_core",
        "Processes that want a core, a core.",
        psutil.getloadavg()[0] / (os.cpu_count() or 1),
    )


def _checks(page: Page, checks: Mapping[str, Check]) -> None:
    page.gauge(
        "brain_check_status",
        "Each check of /health: 0 pass, 1 warn, 2 fail.",
        [({"check": name}, _STATUS[check.status]) for name, check in checks.items()],
    )
