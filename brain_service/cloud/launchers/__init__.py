"""Who gives a run its machine: one Protocol, an implementation a kind of capacity.

Launcher ── local             a child process on this machine
         ├─ vertex            a Vertex AI CustomJob
         └─ queued_resource   a Cloud TPU queued resource
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

__all__ = ["Capacity", "CapacityPhase", "Launcher", "RunRequest"]

CapacityPhase = Literal["waiting", "running", "succeeded", "failed", "preempted", "stopped", "unknown"]


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What to run and on what; everything that a launcher is told. Persisted before the first call."""

    run_id: str
    """Lower-case letters, digits and `-`, at most 40 characters: names and labels in the cloud derive from it."""
    target: Literal["process", "vertex", "queued_resource"]
    arguments: tuple[str, ...]
    """Of `python -m cloud_trainer`, `--output-dir` among them."""
    output_dir: str
    """`gs://bucket/path` or a local folder; the run's `status.json`, checkpoints and bundle."""
    topology: str = "v5e:2x2"
    """TPU generation and slice shape, as `jax.experimental.topologies` names them."""
    spot: bool = True
    max_run_s: float = 21_600.0
    """Running time after which the capacity ends by itself where the service can do that."""
    max_wait_s: float = 86_400.0
    """How long to wait for capacity."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """A run's machine as its service describes it; not the health of what runs on it."""

    name: str
    """The service's full name of it, by which it is asked for and stopped."""
    run_id: str
    phase: CapacityPhase
    detail: str
    """The service's own state and message, for people."""
    created_ns: int | None = None
    running_since_ns: int | None = None
    ended_ns: int | None = None
    attempt: int | None = None
    exit_code: int | None = None
    """Of the run's process, where the service tells it."""
    problem: Mapping[str, Any] | None = None
    """Why asking again would be in vain: a problem document."""


class Launcher(Protocol):
    """A service that runs `python -m cloud_trainer`. Calls block, and any of them may be repeated after a kill.

    Times of a Capacity are in this machine's clock, whatever the service's says.

    Errors (all of `brain_service.errors`): UnavailableError where the service does not answer or has no capacity
    now (try again); ForbiddenError, NotFoundError, InvalidError and TooManyError (quota) where repeating does not
    help, with what to change.
    """

    @property
    def settle_s(self) -> float:
        """Seconds that a creation whose answer was lost may take to be found; 0 where names are unique."""
        ...

    def find(self, run_id: str) -> list[Capacity]:
        """Return what exists for a run, newest first, ended ones too: asked before anything is created."""
        ...

    def create(self, request: RunRequest, attempt: int) -> Capacity:
        """Ask for a machine under the deterministic name of run and attempt; an existing one is returned."""
        ...

    def look(self, name: str) -> Capacity | None:
        """Return how the named capacity is, None where it is gone."""
        ...

    def stop(self, name: str) -> None:
        """End the capacity and what bills for it; one that is gone is no error."""
        ...

    def owned(self) -> list[Capacity]:
        """Return everything of this robot that still bills, whatever run it belongs to: for the reaper."""
        ...
