"""Temperatures, supply voltage and battery as Linux shows them in sysfs; a robot may lack any of them.

Source: the kernel's Documentation/ABI/testing/sysfs-class-thermal, sysfs-class-hwmon and sysfs-class-power.
"""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Sensors", "read_sensors"]

SYSFS = Path("/sys")


@dataclass(frozen=True)
class Sensors:
    """One look at the sensors; None where the machine has none."""

    temperature_c: float | None
    """The hottest thermal zone, in degrees Celsius."""
    under_voltage: bool | None
    """Whether the supply was too weak since the kernel's last look: a Raspberry Pi's firmware flag."""
    battery_share: float | None
    """Charge of the emptiest battery that feeds the machine, 0..1."""
    mains: bool | None
    """Whether a charger or mains supply is plugged in; a battery that does not discharge counts as one."""


def read_sensors(sysfs: Path = SYSFS) -> Sensors:
    """Read all sensors below a sysfs tree. A file that is missing, unreadable or odd counts as no sensor."""
    zones = (_number(path) for path in sysfs.glob("class/thermal/thermal_zone*/temp"))
    # Millidegrees. A zone that is switched off reads 0 or far below it.
    hot = [value / 1000 for value in zones if value is not None and value > 0]
    alarms = [
        value for path in sysfs.glob("class/hwmon/hwmon*/in*_lcrit_alarm") if (value := _number(path)) is not None
    ]
    supplies = [_supply(path) for path in sorted(sysfs.glob("class/power_supply/*"))]
    charges = [charge for charge, _ in supplies if charge is not None]
    fed = [plugged for _, plugged in supplies if plugged is not None]
    return Sensors(
        temperature_c=max(hot, default=None),
        under_voltage=any(alarms) if alarms else None,
        battery_share=min(charges, default=None),
        mains=any(fed) if fed else None,
    )


def _supply(folder: Path) -> tuple[float | None, bool | None]:
    """Return the charge of a battery and whether it is fed, or for another supply whether it is plugged in."""
    if _text(folder / "type") != "Battery":
        online = _number(folder / "online")
        return None, None if online is None else online > 0
    if _text(folder / "scope") == "Device":
        return None, None  # a mouse's or a controller's own battery
    capacity, status = _number(folder / "capacity"), _text(folder / "status")
    charge = None if capacity is None else min(max(capacity / 100, 0.0), 1.0)
    return charge, status in ("Charging", "Full", "Not charging") if status else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(int(_text(path)))
    except ValueError:
        return None
