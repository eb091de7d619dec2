"""May adapters be trained now? Not while the robot works, is hot or low; and not where nobody can tell.

The gates of every training (`hardware/gate.py`) let work go on where a sensor is missing. These are shut then,
unless the setting `lora.allow_missing` names the sensor: a robot that cannot tell how hot it is must be told by a
person that this does not matter.
"""

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from brain_service.errors import UnavailableError
from brain_service.hardware.gate import Gate
from brain_service.hardware.thermals import Sensors, read_sensors
from brain_service.settings import Settings
from brain_service.training.torch_lora.activity import Activity, look_for_activity

__all__ = ["LoraGates"]

SENSORS: Mapping[str, str] = MappingProxyType(
    {
        "sessions": "whether a session acts cannot be told",
        "episodes": "whether an episode is being recorded cannot be told",
        "battery": "there is neither a battery's charge nor a mains supply to be read",
        "temperature": "there is no temperature to be read",
    }
)
"""What each sensor's absence means, by its name in `lora.allow_missing`."""


class LoraGates:
    """Tells why a fine-tuning must rest now, or nothing. Ask it as often as you like: it looks every
    `gates.poll_interval_s` at most.

    Idle: no session has acted for `lora.idle_s`. Teleoperation inactive: no episode is open. Battery and
    temperature: the limits of `gates`; a mains supply is as good as a battery, and a gate that is set to "none"
    needs no sensor. `read`, `look` and `clock` (seconds, monotonic) are for those with others.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        read: Callable[[], Sensors] | None = None,
        look: Callable[[], Activity] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._read = read or (lambda: read_sensors(settings.gates.sysfs))
        self._look = look or (lambda: look_for_activity(settings))
        self._clock = clock
        self._sensors = self._read()
        self._hardware = Gate(settings.gates, read=lambda: self._sensors, clock=clock)
        self._looked_s: float | None = None
        self._reason = ""
        self._missing: tuple[str, ...] = ()

    def reason(self) -> str:
        """Return why to rest, for people: what holds the run, or which sensor is missing and its setting."""
        now_s = self._clock()
        if self._looked_s is None or now_s - self._looked_s >= self._settings.gates.poll_interval_s:
            self._looked_s = now_s
            self._sensors, activity = self._read(), self._look()
            self._missing = self._absent(self._sensors, activity)
            told = (*map(_shut, self._missing), self._busy(activity), self._hardware.reason())
            self._reason = "; ".join(text for text in told if text)
        return self._reason

    def require_sensors(self) -> None:
        """Check before a run begins that every sensor is there, or need not be.

        Raises:
            UnavailableError: one is missing; names it and the setting that does without.
        """
        self.reason()
        if self._missing:
            raise UnavailableError("; ".join(map(_shut, self._missing)), missing=list(self._missing))

    def _absent(self, sensors: Sensors, activity: Activity) -> tuple[str, ...]:
        gates, allowed = self._settings.gates, self._settings.lora.allow_missing
        absent = {
            "sessions": activity.session_idle_s is None,
            "episodes": activity.open_episodes is None,
            "battery": gates.min_battery_share is not None
            and sensors.battery_share is None
            and sensors.mains is not True,
            "temperature": gates.max_temperature_c is not None and sensors.temperature_c is None,
        }
        return tuple(name for name in SENSORS if absent[name] and name not in allowed)

    def _busy(self, activity: Activity) -> str:
        idle_s, least_s = activity.session_idle_s, self._settings.lora.idle_s
        told = []
        if idle_s is not None and idle_s < least_s:
            told.append(f"a session acted {idle_s:.0f} s ago; goes on after {least_s:.0f} s without")
        if activity.open_episodes:
            told.append(f"{activity.open_episodes} episodes are being recorded; goes on when they have ended")
        return "; ".join(told)


def _shut(sensor: str) -> str:
    return (
        f"sensor {sensor!r} is missing: {SENSORS[sensor]}; if this robot does without it, set "
        f'lora.allow_missing = ["{sensor}"] in brain.toml'
    )
