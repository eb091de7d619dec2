"""When the network may be used, and how much of it: hours in which nothing is sent, a cap on bytes a second."""

import datetime as clock
import io
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from brain_service.errors import ConfigError

__all__ = ["Bandwidth", "QuietHours", "metered"]

_HOURS = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)")
_PIECE_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class QuietHours:
    """A span of each day in local time, from `start` until before `end`; over midnight where `end` is earlier."""

    start: clock.time
    end: clock.time

    @staticmethod
    def parse(text: str | None) -> "QuietHours | None":
        """Read `22:00-06:00`.

        Raises:
            ConfigError: a time is none, or both are the same, which could mean never or always.
        """
        if text is None:
            return None
        found = _HOURS.fullmatch(text)
        try:
            if found is None:
                raise ValueError("use HH:MM-HH:MM")
            a, b, c, d = (int(part) for part in found.groups())
            start, end = clock.time(a, b), clock.time(c, d)
            if start == end:
                raise ValueError("start and end are the same; leave it out for no quiet hours")
        except ValueError as error:
            raise ConfigError(f"cloud.quiet_hours {text!r}: {error}", field="cloud.quiet_hours") from error
        return QuietHours(start, end)

    def wait_s(self, now: clock.datetime) -> float:
        """Return for how many seconds it is quiet from `now` (local time) on; 0 where it is not.

        With a time zone in `now` it is the time that passes, over a change of the clocks too.
        """
        at = now.time().replace(tzinfo=None)
        over_midnight = self.end < self.start
        quiet = (at >= self.start or at < self.end) if over_midnight else self.start <= at < self.end
        if not quiet:
            return 0.0
        day = now.date() + clock.timedelta(days=1) if over_midnight and at >= self.start else now.date()
        end = clock.datetime.combine(day, self.end)
        if now.tzinfo is None:
            return (end - now).total_seconds()
        # `astimezone` of a naive time asks the system what the clocks show then.
        return max(0.0, end.astimezone().timestamp() - now.timestamp())


class Bandwidth:
    """A token bucket: in any span of `t` seconds at most `bytes_per_s * t + burst_bytes` pass. Thread-safe.

    `monotonic_s` is a clock.
    """

    def __init__(
        self,
        bytes_per_s: float,
        burst_bytes: float = _PIECE_BYTES,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = bytes_per_s
        self._burst = burst_bytes
        self._monotonic_s = monotonic_s
        self._level = burst_bytes
        self._seen_s = monotonic_s()
        self._lock = threading.Lock()

    def take(self, size_bytes: int) -> float:
        """Take bytes out and return how long to wait, in seconds, before they may pass."""
        with self._lock:
            now_s = self._monotonic_s()
            self._level = min(self._burst, self._level + (now_s - self._seen_s) * self._rate)
            self._seen_s = now_s
            # Below nothing: what is owed is waited for, and nobody else's share is lost meanwhile.
            self._level -= size_bytes
            return max(0.0, -self._level / self._rate)


def metered(data: bytes, bandwidth: Bandwidth, pause: Callable[[float], None]) -> "_Metered":
    """Return the bytes as a file that a connection reads no faster than the cap; `pause` sleeps and may raise."""
    return _Metered(data, bandwidth, pause)


class _Metered(io.BytesIO):
    def __init__(self, data: bytes, bandwidth: Bandwidth, pause: Callable[[float], None]) -> None:
        super().__init__(data)
        self._length = len(data)
        self._bandwidth = bandwidth
        self._pause = pause

    def __len__(self) -> int:
        return self._length

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(_PIECE_BYTES if size is None or size < 0 else min(size, _PIECE_BYTES))
        if piece and (wait_s := self._bandwidth.take(len(piece))):
            self._pause(wait_s)
        return piece
