"""What a training run says of itself: `<output_dir>/status.json`, written by `cloud_trainer`, read by the robot.

Capacity that is there says nothing about the run on it: a job is well if its own heartbeat is fresh.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from brain_service.errors import CorruptDataError

__all__ = ["EXIT_PREEMPTED", "EXIT_REFUSED", "STATUS_FILE", "RunPhase", "RunStatus"]

STATUS_FILE = "status.json"
SCHEMA = "continuon-brain/run-status/1"

EXIT_PREEMPTED = 75
"""The run was told to go, saved, and goes on when it is started again (EX_TEMPFAIL)."""
EXIT_REFUSED = 78
"""The run must not be started again as it is: an option, the data or the plan is wrong (EX_CONFIG)."""

RunPhase = Literal[
    "starting", "planning", "compiling", "training", "evaluating", "exporting", "done", "failed", "preempted"
]
"""The last three are ends; `preempted` is one that a new start takes up."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One heartbeat. `attempt` counts the starts of the run, from 1; times are int64 ns since the epoch.

    `goodput` holds seconds since the first start by what they went into: start, compile, input, step, checkpoint,
    lost (steps that a kill made necessary once more), finish (evaluation and export), down (between two attempts).
    They add up to `updated_ns - started_ns`. A run that beats but whose `stepped_ns` stays hangs. `model_id` and
    `evaluation` are there once the phase is `done`, `error` once it is `failed`.
    """

    run_id: str
    phase: RunPhase
    attempt: int
    step: int
    steps: int
    started_ns: int
    updated_ns: int
    stepped_ns: int = 0
    """When `step` last changed, or the phase did."""
    hosts: int = 1
    devices: int = 1
    loss: float | None = None
    steps_per_s: float | None = None
    goodput: Mapping[str, float] = field(default_factory=dict)
    model_id: str | None = None
    evaluation: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    """A problem document (RFC 9457)."""

    def to_json(self) -> bytes:
        """Return the file's bytes."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1).encode() + b"\n"

    @staticmethod
    def from_json(data: bytes, place: str) -> "RunStatus":
        """Parse a heartbeat; `place` stands for the file in errors. Keys that are not known here are dropped.

        Raises:
            CorruptDataError: it is no heartbeat of this schema.
        """
        try:
            document = json.loads(data)
            known = {item.name for item in fields(RunStatus)}
            status = RunStatus(**{name: value for name, value in document.items() if name in known})
        except (ValueError, TypeError, AttributeError) as error:
            raise CorruptDataError(f"{place}: {error}") from error
        if document.get("schema") != SCHEMA or status.phase not in get_args(RunPhase):
            raise CorruptDataError(f"{place}: not a heartbeat of schema {SCHEMA}")
        return status
