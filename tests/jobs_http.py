"""Follow a job over HTTP until it has ended."""

import time
from collections.abc import Callable
from typing import Any

import httpx


def wait_for_job(
    location: str, on_poll: Callable[[dict[str, Any]], None] = lambda job: None, timeout_s: float = 600
) -> dict[str, Any]:
    """Poll the job at `location` until it has ended and return it, however it ended."""
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        job: dict[str, Any] = httpx.get(location, timeout=30).json()
        on_poll(job)
        if job["state"] in ("succeeded", "failed", "cancelled"):
            return job
        time.sleep(0.2)
    raise TimeoutError(f"{location} did not end within {timeout_s} s")
