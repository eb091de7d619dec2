"""All runs of the rows."""

from tests.seed_map import heavy_runs, light_runs
from tests.seed_map.registry import RUNS

__all__ = ["RUNS", "heavy_runs", "light_runs"]
