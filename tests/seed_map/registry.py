"""The runs of the rows, by the name that the map's last column has."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.seed_map.chain import Chain

RUNS: dict[str, "Run"] = {}


@dataclass(frozen=True)
class Run:
    """What runs a row; `slow` where it trains or needs what was trained."""

    check: Callable[[Chain], None]
    slow: bool


def run(check: Callable[[Chain], None]) -> Callable[[Chain], None]:
    """Register a run that takes seconds under its own name."""
    RUNS[check.__name__] = Run(check, slow=False)
    return check


def slow_run(check: Callable[[Chain], None]) -> Callable[[Chain], None]:
    """Register a run that trains, or needs what was trained."""
    RUNS[check.__name__] = Run(check, slow=True)
    return check
