"""Where the training that runs now stands, by the last numbers that its job wrote down."""

import json
from pathlib import Path
from typing import Any

from brain_service.health.queues import running_jobs

__all__ = ["training_now"]

_TAIL_BYTES = 64 * 1024


def training_now(database: Path, jobs_dir: Path) -> dict[str, float]:
    """Return the numbers of the last metrics event (`step`, `steps`, `loss`, `steps_per_s`, ...) of a running job.

    Empty where nothing trains. Reads files: keep it off an event loop.
    """
    for job_id in running_jobs(database):
        found = _last_metrics(jobs_dir / job_id / "events.jsonl")
        if found:
            return found
    return {}


def _last_metrics(path: Path) -> dict[str, float]:
    try:
        with path.open("rb") as file:
            size_bytes = file.seek(0, 2)
            file.seek(max(0, size_bytes - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        # The first line of the tail, and the last of a file that is being written, may be torn.
        if b'"metrics"' in line and isinstance(event := _parsed(line), dict) and event.get("kind") == "metrics":
            return {
                name: float(value)
                for name, value in event.items()
                if isinstance(value, int | float) and not isinstance(value, bool) and name != "t_ns"
            }
    return {}


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
