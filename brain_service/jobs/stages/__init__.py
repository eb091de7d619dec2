"""The stages that jobs are made of, one module each, imported when their turn comes: some load JAX."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, cast

from brain_service.jobs.context import JobContext

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
    """A stage by name; `weight` is its usual share of a job's time, in any unit."""

    name: str
    weight: float

    def load(self) -> StageModule:
        """Import the stage's module."""
        return cast(StageModule, importlib.import_module(f"{__name__}.{self.name}"))


STAGES: Mapping[str, Stage] = MappingProxyType(
    {
        name: Stage(name, weight)
        for name, weight in (
            ("health", 0.5),
            ("inventory", 0.5),
            ("convert", 5),
            ("train", 75),
            ("sanity_check", 1),
            ("evaluate", 6),
            ("export", 8),
            ("canary", 3),
            ("activate", 2),
        )
    }
)
