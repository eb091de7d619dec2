"""A training's curve, read from its job's events as they come, thinned to what a page can show."""

import math
import time
from pathlib import Path
from typing import Any

from brain_service.jobs.events import read_events

__all__ = ["LearningCurve"]

MAX_POINTS = 240
PACE_S = 60.0
TELLING_S = 2.0  # reports nearer to one another came in a burst: a relay's, not the trainer's pace
READS_A_LOOK = 4  # of a mebibyte each: a long run's curve is caught up within seconds, and no look takes long


class _Line:
    """Points of one curve, evenly thinned: when there are too many, every second one goes."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []
        self._stride = 1

    def add(self, step: object, value: object) -> None:
        """Take in a point unless it is no number; what a resumed run repeats takes the place of the first."""
        if not isinstance(step, int) or not isinstance(value, int | float) or not math.isfinite(value):
            return
        while self.points and self.points[-1][0] >= step:
            self.points.pop()
        if len(self.points) > 1 and self.points[-1][0] - self.points[-2][0] < self._stride:
            # The newest point is always there, however near the one before.
            self.points.pop()
        self.points.append((step, round(float(value), 6)))
        if len(self.points) > MAX_POINTS:
            self.points = self.points[:-1:2] + self.points[-1:]
            self._stride = max(2 * self._stride, self.points[1][0] - self.points[0][0])


class LearningCurve:
    """Follows the events of one job."""

    def __init__(self, job_id: str, events: Path) -> None:
        self.job_id = job_id
        self._loss, self._held_out = _Line(), _Line()
        self._events = events
        self._offset = 0
        self._last: dict[str, Any] = {}
        self._paces: list[tuple[float, int]] = []
        self._paused = ""

    def look(self) -> None:
        """Read what has come since the last look; blocking."""
        for _ in range(READS_A_LOOK):
            events = read_events(self._events, self._offset)
            if not events:
                return
            self._offset = events[-1].offset
            for event in events:
                self._take(event.data)

    def to_json(self) -> dict[str, Any]:
        """Return the curve with step, steps, pace and `eta_s`, the seconds that are left (None: nobody knows).

        `points` are `[step, loss]`, `held_out` `[step, held-out loss]`, oldest first, at most some 240 of each.
        """
        step, steps = self._last.get("step"), self._last.get("steps")
        pace = self._pace()
        left = steps - step if isinstance(step, int) and isinstance(steps, int) else None
        known = left is not None and pace and not self._paused
        return {
            "job_id": self.job_id,
            "step": step,
            "steps": steps,
            "loss": self._last.get("loss"),
            "steps_per_s": None if pace is None else round(pace, 2),
            "eta_s": round(left / pace, 1) if known and left is not None and pace else None,
            "paused": self._paused,
            "points": self._loss.points,
            "held_out": self._held_out.points,
        }

    def _take(self, event: dict[str, Any]) -> None:
        if event.get("kind") == "pause":
            self._paused = str(event.get("reason", "")) if event.get("paused") else ""
            self._paces.clear()
        if event.get("kind") != "metrics" or not isinstance(event.get("step"), int):
            return
        step = event["step"]
        self._last = event
        self._paces.append((event.get("t_ns", time.time_ns()) / 1e9, step))
        while self._paces[-1][0] - self._paces[0][0] > PACE_S:
            del self._paces[0]
        self._loss.add(step, event.get("loss"))
        self._held_out.add(event.get("held_out_step", step), event.get("held_out_loss"))

    def _pace(self) -> float | None:
        """Steps a second over the last minute; the trainer's own figure until there are enough reports."""
        if len(self._paces) > 1:
            (began_s, first), (ended_s, last) = self._paces[0], self._paces[-1]
            if ended_s - began_s >= TELLING_S and last > first:
                return (last - first) / (ended_s - began_s)
        told = self._last.get("steps_per_s")
        return float(told) if isinstance(told, int | float) and told > 0 else None
