"""May heavy work go on? A gate with hysteresis over the sensors: it closes at one value and opens at another."""

import time
from collections.abc import Callable

from brain_service.hardware.thermals import Sensors, read_sensors
from brain_service.settings import GateSettings

__all__ = ["Gate"]


class Gate:
    """Tells why heavy work must rest now, or nothing. Ask it as often as you like: it looks at the sensors every
    `poll_interval_s` at most.

    A sensor that is missing closes nothing. `read` and `clock` (seconds, monotonic) are for those who have other
    sensors or another time.
    """

    def __init__(
        self,
        settings: GateSettings,
        *,
        read: Callable[[], Sensors] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._read = read or (lambda: read_sensors(settings.sysfs))
        self._clock = clock
        self._looked_s: float | None = None
        self._hot = self._empty = False
        self._weak_s: float | None = None
        self._reason = ""

    def reason(self) -> str:
        """Return why to rest, for people: value, limit and when it goes on; empty while the gate is open."""
        now_s = self._clock()
        if self._looked_s is None or now_s - self._looked_s >= self._settings.poll_interval_s:
            self._looked_s = now_s
            sensors = self._read()
            told = (self._heat(sensors), self._battery(sensors), self._voltage(sensors, now_s))
            self._reason = "; ".join(text for text in told if text)
        return self._reason

    def _heat(self, sensors: Sensors) -> str:
        limit_c, now_c = self._settings.max_temperature_c, sensors.temperature_c
        if limit_c is None or now_c is None:
            self._hot = False
            return ""
        resume_c = limit_c - self._settings.cool_down_c
        self._hot = now_c >= limit_c or (self._hot and now_c > resume_c)
        return f"{now_c:.0f} C, the limit is {limit_c:.0f} C; goes on at {resume_c:.0f} C" if self._hot else ""

    def _battery(self, sensors: Sensors) -> str:
        least, now = self._settings.min_battery_share, sensors.battery_share
        if least is None or now is None or sensors.mains:
            self._empty = False
            return ""
        resume = min(least + self._settings.charge_margin, 1.0)
        self._empty = now < least or (self._empty and now < resume)
        if not self._empty:
            return ""
        return f"battery at {now:.0%}, the least is {least:.0%}; goes on at {resume:.0%} or with a charger"

    def _voltage(self, sensors: Sensors, now_s: float) -> str:
        quiet_s = self._settings.under_voltage_quiet_s
        if quiet_s is None:
            return ""
        if sensors.under_voltage:
            self._weak_s = now_s
        if self._weak_s is None or now_s - self._weak_s >= quiet_s:
            return ""
        return f"under-voltage: the supply is too weak; goes on after {quiet_s:.0f} s without"
