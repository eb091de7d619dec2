"""The stages that jobs are made of, one module each, imported when their turn comes: some load JAX."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, cast

from brain_service.jobs.context import JobContext
from brain_service.jobs.job import Lane

__all__ = ["STAGES", "Outcome", "Stage", "StageModule"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage did: `details` in a sentence; `result` joins the job's result under its own keys."""

    details: str
    result: Mapping[str, Any] = field(default_factory=dict)
    skipped: bool = False


class StageModule(Protocol):
    """What a stage's module offers."""

    def command(self, context: JobContext) -> str | None:
        """Return what to type to do the same by hand, or None."""

    def run(self, context: JobContext) -> Outcome:
        """Do the stage's work and report it; raises a BrainError when it fails."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage by name; `weight` is its usual share of a job's time, in any unit, `lane` what it needs."""

    name: str
    weight: float
    lane: Lane = "work"

    def load(self) -> StageModule:
        """Import the stage's module."""
        return cast(StageModule, importlib.import_module(f"{__name__}.{self.name}"))


STAGES: Mapping[str, Stage] = MappingProxyType(
    {
        stage.name: stage
        for stage in (
            Stage("health", 0.5),
            Stage("inventory", 0.5),
            Stage("convert", 5),
            Stage("train", 75),
            Stage("upload", 10, "network"),
            Stage("launch", 75, "network"),
            Stage("fetch", 5, "network"),
            Stage("sanity_check", 1),
            Stage("evaluate", 6),
            Stage("export", 8),
            Stage("canary", 3),
            Stage("activate", 2),
        )
    }
)
