"""What capture writes to the medium: bytes a UTC day, and a day at the pace of the last hour.

A card endures so many bytes; the meter tells how fast they go. It counts what is handed to the file system, not
what the card makes of it (blocks, journal, erase units).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

__all__ = ["WearMeter"]

_BUCKET_S = 60
_BUCKETS = 60  # one hour
_DAY_S = 86_400


class WearMeter:
    """Counts written bytes. Thread-safe; `add` takes under a microsecond and touches no file.

    `total_bytes` and `total_steps` count since the start. Days are those of the wall clock (to the minute), the
    pace is measured by the monotonic one: a robot without a clock battery boots in another year.
    """

    def __init__(
        self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.total_bytes = self.total_steps = 0
        self._wall = wall
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._began_s = monotonic()
        self._days: dict[str, int] = {}
        self._unsaved: dict[str, int] = {}
        # (minute, bytes), oldest first.
        self._minutes: deque[tuple[int, int]] = deque(maxlen=_BUCKETS)
        self._minute = int(self._began_s) // _BUCKET_S
        self._day = _day(wall())
        self._now_bytes = 0

    def add(self, size_bytes: int) -> None:
        """Count bytes that were just written."""
        minute = int(self._monotonic()) // _BUCKET_S
        with self._lock:
            if minute != self._minute:
                self._turn(minute)
            self._now_bytes += size_bytes
            self.total_bytes += size_bytes

    def count_steps(self, steps: int) -> None:
        """Count steps that were just accepted."""
        with self._lock:
            self.total_steps += steps

    @property
    def bytes_today(self) -> int:
        """Bytes written in this UTC day, as far as known from before a restart too."""
        self.add(0)
        today = _day(self._wall())
        with self._lock:
            return self._days.get(today, 0) + (self._now_bytes if today == self._day else 0)

    @property
    def bytes_per_day(self) -> int:
        """Bytes a day at the pace of the last hour, or of the time since the start where that is less."""
        self.add(0)
        now_s = self._monotonic()
        with self._lock:
            since = self._minute - _BUCKETS
            written = self._now_bytes + sum(count for minute, count in self._minutes if minute > since)
            span_s = now_s - max(self._began_s, (since + 1) * _BUCKET_S)
        return round(written * _DAY_S / max(span_s, _BUCKET_S))

    def restore(self, days: Mapping[str, int]) -> None:
        """Add what earlier runs counted: bytes by day (`2026-11-22`)."""
        with self._lock:
            for day, size_bytes in days.items():
                self._days[day] = self._days.get(day, 0) + size_bytes

    def take_unsaved(self) -> dict[str, int]:
        """Return the bytes by day that were counted since the last call; the caller adds them to its sums."""
        self.add(0)
        with self._lock:
            self._turn(self._minute)
            unsaved, self._unsaved = self._unsaved, {}
        return unsaved

    def give_back(self, unsaved: Mapping[str, int]) -> None:
        """Take back the bytes by day that could not be saved, for the next `take_unsaved`."""
        with self._lock:
            for day, size_bytes in unsaved.items():
                self._unsaved[day] = self._unsaved.get(day, 0) + size_bytes

    def _turn(self, minute: int) -> None:
        """Book the running minute and begin another; the caller holds the lock."""
        if self._now_bytes:
            self._days[self._day] = self._days.get(self._day, 0) + self._now_bytes
            self._unsaved[self._day] = self._unsaved.get(self._day, 0) + self._now_bytes
            if self._minutes and self._minutes[-1][0] == self._minute:
                self._minutes.append((self._minute, self._minutes.pop()[1] + self._now_bytes))
            else:
                self._minutes.append((self._minute, self._now_bytes))
            self._now_bytes = 0
        self._minute = minute
        self._day = _day(self._wall())


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
