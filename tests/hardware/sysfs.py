"""A sysfs tree of a robot, as files: the real boundary, with values that a test sets."""

from pathlib import Path


def write(path: Path, text: str) -> None:
    """Replace one file at once, as the kernel would show it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text + "\n")
    temporary.replace(path)


def set_temperature(root: Path, celsius: float, zone: int = 0) -> None:
    folder = root / "class" / "thermal" / f"thermal_zone{zone}"
    write(folder / "type", "cpu-thermal")
    write(folder / "temp", str(round(celsius * 1000)))


def set_under_voltage(root: Path, alarm: bool) -> None:
    folder = root / "class" / "hwmon" / "hwmon2"
    write(folder / "name", "rpi_volt")
    write(folder / "in0_lcrit_alarm", str(int(alarm)))


def set_battery(
    root: Path, percent: int, status: str = "Discharging", name: str = "BAT0", scope: str = ""
) -> None:
    folder = root / "class" / "power_supply" / name
    write(folder / "type", "Battery")
    write(folder / "capacity", str(percent))
    write(folder / "status", status)
    if scope:
        write(folder / "scope", scope)


def set_mains(root: Path, online: bool) -> None:
    folder = root / "class" / "power_supply" / "AC"
    write(folder / "type", "Mains")
    write(folder / "online", str(int(online)))
