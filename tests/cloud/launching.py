"""What the tests of launchers and runs share: settings for the fake control plane, requests, heartbeats."""

import time
from pathlib import Path
from typing import Any

from brain_service.cloud.launchers import RunRequest
from brain_service.cloud.run_status import STATUS_FILE, RunStatus
from brain_service.durable import write_atomic
from brain_service.settings import CloudSettings

__all__ = ["cloud_settings", "heartbeat", "request", "wait_for"]

PROJECT = "robots-of-mine"


def cloud_settings(url: str, **more: Any) -> CloudSettings:
    """Return settings for both services at one address."""
    values = {"project": PROJECT, "image": "europe-docker.pkg.dev/robots-of-mine/brain/trainer:1", **more}
    return CloudSettings(vertex_endpoint=url, tpu_endpoint=url, **values)


def request(target: str = "vertex", run_id: str = "run-1", **more: Any) -> RunRequest:
    """Return a request for the smallest slice."""
    values = {"arguments": ("--num-steps", "10"), "output_dir": "gs://bucket/runs/run-1", **more}
    return RunRequest(run_id=run_id, target=target, **values)  # type: ignore[arg-type]


def heartbeat(output_dir: Path, run_id: str = "run-1", **more: Any) -> RunStatus:
    """Write a heartbeat as the trainer does, and return it."""
    now_ns = time.time_ns()
    values = {"phase": "training", "attempt": 1, "step": 3, "steps": 10, "started_ns": now_ns, **more}
    status = RunStatus(run_id=run_id, updated_ns=now_ns, **values)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_atomic(output_dir / STATUS_FILE, status.to_json())
    return status


def wait_for(found: Any, what: str, timeout_s: float = 30.0) -> Any:
    """Return the first true value of a callable."""
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        if value := found():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s} s for {what}")
