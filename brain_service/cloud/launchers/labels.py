"""How a run's capacity is recognised in a project that others use too, and what its process is told of itself."""

import hashlib
from collections.abc import Mapping

from brain_service.cloud.launchers import RunRequest
from brain_service.errors import ConfigError
from brain_service.settings import CloudSettings

__all__ = ["ATTEMPT", "ROBOT", "RUN", "attempt_of", "job_environment", "labels", "needed", "unique_name"]

ROBOT = "continuon-robot"
RUN = "continuon-run"
ATTEMPT = "continuon-attempt"


def labels(settings: CloudSettings, request: RunRequest, attempt: int) -> dict[str, str]:
    """Return the labels of a run's capacity."""
    return {ROBOT: settings.robot, RUN: request.run_id, ATTEMPT: str(attempt)}


def attempt_of(found: Mapping[str, object]) -> int | None:
    """Return the attempt that labels name, None where they name none."""
    text = str(found.get(ATTEMPT, ""))
    return int(text) if text.isdigit() else None


def job_environment(request: RunRequest, attempt: int) -> dict[str, str]:
    """Return the variables that the run's process finds beside what its machine sets."""
    return {"CONTINUON_RUN_ID": request.run_id, "CONTINUON_ATTEMPT": str(attempt), "PYTHONUNBUFFERED": "1"}


def unique_name(settings: CloudSettings, run_id: str, attempt: int) -> str:
    """Return the one name of an attempt: the same after every restart, another one for another robot."""
    robot = hashlib.sha256(settings.robot.encode()).hexdigest()[:6]
    return f"cb-{run_id}-{robot}-{attempt}"


def needed(value: str | None, name: str, meaning: str) -> str:
    """Return a setting that must be there.

    Raises:
        ConfigError: it is not.
    """
    if not value:
        raise ConfigError(f"cloud.{name} is not set; it is {meaning}", field=f"cloud.{name}")
    return value
