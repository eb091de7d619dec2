"""One figure of a benchmark, beside its floor or peer measured in the same run."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """A figure with its unit, and what it is held against."""

    name: str
    value: float
    unit: str
    floor_name: str
    floor: float

    @property
    def ratio(self) -> float:
        """How many times the floor."""
        return self.value / self.floor if self.floor else float("nan")

    @staticmethod
    def pair(
        name: str,
        found_us: np.ndarray[Any, np.dtype[Any]],
        floor_us: np.ndarray[Any, np.dtype[Any]],
        floor_name: str = "bare FastAPI endpoint",
    ) -> "list[Row]":
        """Return the p50 and the p99 of latencies in microseconds beside those of the floor."""
        return [
            Row(
                f"{name}, p{q}",
                float(np.percentile(found_us, q)),
                "us",
                floor_name,
                float(np.percentile(floor_us, q)),
            )
            for q in (50, 99)
        ]
