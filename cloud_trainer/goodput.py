"""Where a run's time goes, over all its attempts: only what is in `step` trained the model.

    start       processes, data and checkpoint are made ready        compile     up to the end of the first step
    input       the devices stood idle for want of a batch           step        training
    checkpoint  the steps stood still for a checkpoint               lost        steps made once more after a kill
    finish      evaluation and export                                down        between two attempts

They add up to the time since the first start. The words are those of the goodput literature: time is good if it
moves the run on.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from brain_service.training.phases import PhaseClock

__all__ = ["BUCKETS", "Goodput", "process_age_s"]

BUCKETS = ("start", "compile", "input", "step", "checkpoint", "lost", "finish", "down")


class Goodput(PhaseClock):
    """The clock of one attempt on top of what earlier ones spent.

    `before` holds the earlier attempts' seconds, `down_s` the time since the last sign of one of them,
    `age_s` how long this process ran before it could make a clock. Steps up to `known_step` were made before.
    """

    def __init__(
        self,
        *,
        before: Mapping[str, float] | None = None,
        down_s: float = 0.0,
        age_s: float = 0.0,
        known_step: int = 0,
    ) -> None:
        super().__init__("start")
        self._before = dict(before or {})
        for bucket, seconds in (("down", down_s), ("start", age_s)):
            self._before[bucket] = self._before.get(bucket, 0.0) + seconds
        self._known_step = known_step
        self._step: int | None = None
        self.on_checkpoint: Callable[[], None] = lambda: None

    def made(self, step: int) -> None:
        """Say that so many steps are made."""
        self._step = step

    def begin(self, phase: str) -> None:
        """End the phase that runs, and let another one begin."""
        again = phase == "step" and self._step is not None and self._step < self._known_step
        super().begin("lost" if again else phase)
        if phase == "checkpoint":
            self.on_checkpoint()

    def buckets(self) -> dict[str, float]:
        """Return the seconds of each bucket so far."""
        now = self.seconds()
        return {
            bucket: round(self._before.get(bucket, 0.0) + now.get(bucket, 0.0), 3)
            for bucket in (*BUCKETS, *sorted(now.keys() - BUCKETS))
        }


def process_age_s() -> float:
    """Return how long this process has run: imports take seconds before any clock of ours can start."""
    fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # proc(5): field 22, ticks since boot
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started_s, 0.0)
