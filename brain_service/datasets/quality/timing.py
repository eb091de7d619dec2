"""Time: intervals between steps against the control period, gaps, jitter, time that does not increase."""

from collections.abc import Callable

import msgspec
import numpy as np

from brain_service.datasets.quality.findings import Finding, count_of, name_some
from brain_service.datasets.quality.limits import Limits
from brain_service.datasets.quality.ranges import Histogram
from brain_service.datasets.quality.view import EpisodeView

__all__ = ["TimeKeeper", "Timing"]

_TOP_PERIODS = 5.0
_BINS = 100


class Timing(msgspec.Struct, frozen=True):
    """Intervals of all episodes. `intervals` is a histogram in control periods, its last bin open to the right.

    A period of 0 s is unknown (no episode has two steps): then nothing is held against it.
    """

    control_period_s: float
    interval_count: int
    gaps: int
    reversed: int
    repeated: int
    jitter_share: float
    longest_interval_s: float
    intervals: Histogram


class TimeKeeper:
    """Takes episodes one by one."""

    def __init__(self, control_period_s: float, limits: Limits) -> None:
        self._period_ns = control_period_s * 1e9
        self._limits = limits
        self._count = self._jittery = self._gaps = self._reversed = self._repeated = 0
        self._longest_ns = 0
        self._bins = np.zeros(_BINS, np.int64)
        # (value, episode, step) of each episode that breaks the limit.
        self._gap: list[tuple[float, str, int]] = []
        self._back: list[tuple[float, str, int]] = []
        self._same: list[tuple[float, str, int]] = []
        self._off: list[tuple[float, str, int]] = []
        self._jitter: list[tuple[float, str, int]] = []

    def add(self, view: EpisodeView) -> None:
        """Take one episode's times."""
        intervals = np.diff(view.timestamp_ns)
        if not len(intervals):
            return
        self._count += len(intervals)
        self._longest_ns = max(self._longest_ns, int(intervals.max()))
        if intervals.min() <= 0:
            for kept, wrong in ((self._back, intervals < 0), (self._same, intervals == 0)):
                if wrong.any():
                    kept.append((float(wrong.sum()), view.episode_id, int(wrong.argmax()) + 1))
            self._reversed += int((intervals < 0).sum())
            self._repeated += int((intervals == 0).sum())
        if not self._period_ns:
            return
        periods = intervals / self._period_ns
        bins = np.clip(periods * (_BINS / _TOP_PERIODS), 0, _BINS - 1).astype(np.int64)
        self._bins += np.bincount(bins, minlength=_BINS)
        gaps = int((periods > self._limits.max_gap_periods).sum())
        if gaps:
            self._gaps += gaps
            self._gap.append((float(periods.max()), view.episode_id, int(periods.argmax()) + 1))
        uneven = np.abs(periods - 1) > self._limits.jitter_periods
        # A gap is named as one.
        jittery = int((uneven & (periods <= self._limits.max_gap_periods)).sum())
        self._jittery += jittery
        if jittery > self._limits.max_jitter_share * len(periods):
            self._jitter.append((jittery / len(periods), view.episode_id, 0))
        # The mean, since uneven intervals have a median of their own; gaps are no part of the rate.
        steady = periods[periods <= self._limits.max_gap_periods]
        own = float(steady.mean()) if len(steady) else float(periods.mean())
        if abs(own - 1) > self._limits.max_period_error:
            self._off.append((own, view.episode_id, 0))

    def result(self) -> Timing:
        """Return the figures."""
        return Timing(
            control_period_s=self._period_ns / 1e9,
            interval_count=self._count,
            gaps=self._gaps,
            reversed=self._reversed,
            repeated=self._repeated,
            jitter_share=self._jittery / max(self._count, 1),
            longest_interval_s=self._longest_ns / 1e9,
            intervals=Histogram(0.0, _TOP_PERIODS, self._bins.tolist()),
        )

    def findings(self) -> list[Finding]:
        """Return what is wrong with the time."""
        limits, period_ms = self._limits, self._period_ns / 1e6
        found = []
        if self._back:
            worst = _worst(self._back)
            found.append(
                Finding(
                    code="time_reversed",
                    severity="fail",
                    message=f"time runs backwards {count_of(self._reversed, 'time')}, first in {worst[0][1]} "
                    f"at step {worst[0][2]}; in {name_some(_names(worst))}",
                    fix="record with a monotonic clock, or leave these episodes out: their order is in doubt",
                    episodes=_names(worst),
                    value=self._reversed,
                    limit=0,
                )
            )
        if self._same:
            worst = _worst(self._same)
            found.append(
                Finding(
                    code="time_repeated",
                    severity="warn",
                    message=f"{count_of(self._repeated, 'step')} with the time of the step before, in "
                    f"{name_some(_names(worst))}",
                    fix="stamp each step when it is sensed; steps that were posted twice must be left out",
                    episodes=_names(worst),
                    value=self._repeated,
                    limit=0,
                )
            )
        if self._gap:
            worst = _worst(self._gap)
            found.append(
                Finding(
                    code="time_gap",
                    severity="warn",
                    message=f"{count_of(self._gaps, 'gap')} of more than {limits.max_gap_periods:g} control "
                    f"periods ({limits.max_gap_periods * period_ms:g} ms); "
                    f"the longest, {worst[0][0] * period_ms:g} ms, "
                    f"in {worst[0][1]} before step {worst[0][2]}",
                    fix="split these episodes at the gap or leave them out; look for what held the controller up",
                    episodes=_names(worst),
                    value=worst[0][0],
                    limit=limits.max_gap_periods,
                )
            )
        return found + self._rate_findings(period_ms)

    def _rate_findings(self, period_ms: float) -> list[Finding]:
        limits, found = self._limits, []
        if self._off:
            worst = _worst(self._off, key=lambda item: abs(np.log(max(item[0], 1e-9))))
            found.append(
                Finding(
                    code="period_mismatch",
                    severity="warn",
                    message=f"{count_of(len(self._off), 'episode')} at another rate than the usual "
                    f"{period_ms:g} ms: {worst[0][1]} at {worst[0][0] * period_ms:g} ms",
                    fix="convert episodes of one rate into one dataset; a recurrent model learns one period",
                    episodes=_names(worst),
                    value=worst[0][0],
                    limit=limits.max_period_error,
                )
            )
        # Time that is not at the usual rate at all was said above.
        elsewhere = {name for _, name, _ in self._off}
        jitter = [item for item in self._jitter if item[1] not in elsewhere]
        if jitter:
            worst = _worst(jitter)
            found.append(
                Finding(
                    code="time_jitter",
                    severity="warn",
                    message=f"in {count_of(len(jitter), 'episode')} more than {limits.max_jitter_share:.0%} of "
                    f"the intervals are off by more than {limits.jitter_periods:g} control"
                    f" periods;"
                    f" {worst[0][0]:.0%} in "
                    f"{worst[0][1]}",
                    fix="give the controller's loop a real-time priority or a timer; stamp when sensing",
                    episodes=_names(worst),
                    value=worst[0][0],
                    limit=limits.max_jitter_share,
                )
            )
        return found


def _worst(
    items: list[tuple[float, str, int]],
    key: Callable[[tuple[float, str, int]], float] = lambda item: item[0],
) -> list[tuple[float, str, int]]:
    return sorted(items, key=lambda item: (-key(item), item[1]))


def _names(items: list[tuple[float, str, int]]) -> list[str]:
    return [name for _, name, _ in items]
