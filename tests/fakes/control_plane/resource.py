"""One custom job or queued resource, and how it gets older."""

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

__all__ = ["Life", "Resource", "stamp"]

LIFE: dict[str, Any] = {
    "queue_s": 0.05,
    "provision_s": 0.05,
    "run_s": 1.0,
    "exit_code": 0,
    "preempt_after_s": None,
    "preempt_as": "FAILED",
    "grace_s": 10.0,
    "state": None,
    "expire": False,
    "stockout": False,
}
Life = dict[str, Any]


def stamp(seconds: float) -> str:
    """Return a protobuf Timestamp in JSON, with nanoseconds as Google writes them."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


@dataclass
class Resource:
    """`phase` is its own word for where it stands; `told` makes Google's of it. Times are s since the epoch."""

    kind: Literal["vertex", "queued_resource"]
    name: str
    body: dict[str, Any]
    life: Life
    created_s: float
    changed_s: float
    request_id: str = ""
    phase: str = "queued"
    started_s: float | None = None
    ended_s: float | None = None
    running_s: float | None = None
    billed_s: float = 0.0
    error: dict[str, Any] | None = None
    pid: int | None = None
    runs: int = 0
    looks: int = 0
    """How often it was asked for by name."""
    exit_codes: list[int] = field(default_factory=list)
    exit_reported: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what the state file holds of it."""
        return asdict(self)

    @property
    def labels(self) -> dict[str, str]:
        """What it is labelled with."""
        if self.kind == "vertex":
            return dict(self.body.get("labels", {}))
        return dict(self.body["tpu"]["nodeSpec"][0]["node"].get("labels", {}))

    @property
    def is_live(self) -> bool:
        """Whether it bills or will."""
        return self.phase in ("queued", "pending", "running", "going", "cancelling")

    @property
    def spot(self) -> bool:
        """Whether it may be taken back."""
        if self.kind == "queued_resource":
            return "spot" in self.body
        return self.body["jobSpec"].get("scheduling", {}).get("strategy") in ("SPOT", 4)

    def told(self, ahead_s: float = 0.0) -> dict[str, Any]:
        """Return the resource as its service's JSON, by a clock that is so far ahead."""
        return self._job(ahead_s) if self.kind == "vertex" else self._queued_resource(ahead_s)

    def _job(self, ahead_s: float) -> dict[str, Any]:
        states = {
            "queued": "JOB_STATE_QUEUED",
            "pending": "JOB_STATE_PENDING",
            "running": "JOB_STATE_RUNNING",
            "going": "JOB_STATE_RUNNING",
            "cancelling": "JOB_STATE_CANCELLING",
            "cancelled": "JOB_STATE_CANCELLED",
            "succeeded": "JOB_STATE_SUCCEEDED",
            "expired": "JOB_STATE_EXPIRED",
        }
        state = states.get(self.phase, "JOB_STATE_FAILED")
        if self.life["state"] and self.phase in ("running", "going"):
            state = self.life["state"]
        return {
            **self.body,
            "name": self.name,
            "state": state,
            "createTime": stamp(self.created_s + ahead_s),
            "updateTime": stamp(self.changed_s + ahead_s),
            **({"startTime": stamp(self.started_s + ahead_s)} if self.started_s else {}),
            **({"endTime": stamp(self.ended_s + ahead_s)} if self.ended_s else {}),
            **({"error": self.error} if self.error else {}),
        }

    def _queued_resource(self, ahead_s: float) -> dict[str, Any]:
        states = {
            "queued": ("WAITING_FOR_RESOURCES", None),
            "pending": ("PROVISIONING", "provisioningData"),
            "running": ("ACTIVE", "activeData"),
            "going": ("SUSPENDING", "suspendingData"),
            "preempted": ("SUSPENDED", "suspendedData"),
            "cancelling": ("DELETING", "deletingData"),
        }
        state, data = states.get(self.phase, ("FAILED", "failedData"))
        if self.life["state"] and self.phase == "running":
            state = self.life["state"]
        told: dict[str, Any] = {"state": state, "stateInitiator": "SERVICE"}
        if data:
            told[data] = {"error": self.error} if data == "failedData" and self.error else {}
        return {**self.body, "name": self.name, "createTime": stamp(self.created_s + ahead_s), "state": told}
