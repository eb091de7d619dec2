from pathlib import Path

from brain_service.hardware.thermals import Sensors, read_sensors
from tests.hardware.sysfs import set_battery, set_mains, set_temperature, set_under_voltage, write


def test_a_machine_without_sensors_has_none(tmp_path: Path) -> None:
    assert read_sensors(tmp_path) == Sensors(None, None, None, None)


def test_the_hottest_zone_counts(tmp_path: Path) -> None:
    set_temperature(tmp_path, 48.312, 0)
    set_temperature(tmp_path, 63.5, 1)
    assert read_sensors(tmp_path).temperature_c == 63.5


def test_zones_that_are_off_or_odd_do_not_count(tmp_path: Path) -> None:
    set_temperature(tmp_path, -273.2, 0)
    write(tmp_path / "class/thermal/thermal_zone1/temp", "N/A")
    (tmp_path / "class/thermal/thermal_zone2/temp").mkdir(parents=True)
    assert read_sensors(tmp_path).temperature_c is None
    set_temperature(tmp_path, 41.0, 3)
    assert read_sensors(tmp_path).temperature_c == 41.0


def test_the_firmwares_flag_is_under_voltage(tmp_path: Path) -> None:
    set_under_voltage(tmp_path, False)
    assert read_sensors(tmp_path).under_voltage is False
    set_under_voltage(tmp_path, True)
    assert read_sensors(tmp_path).under_voltage is True


def test_the_emptiest_battery_of_the_machine_counts(tmp_path: Path) -> None:
    set_battery(tmp_path, 80)
    set_battery(tmp_path, 35, name="BAT1")
    set_battery(tmp_path, 3, name="mouse", scope="Device")
    found = read_sensors(tmp_path)
    assert (found.battery_share, found.mains) == (0.35, False)


def test_a_charger_is_seen_by_its_own_entry_or_by_the_batterys(tmp_path: Path) -> None:
    set_mains(tmp_path, False)
    assert read_sensors(tmp_path).mains is False
    set_battery(tmp_path, 20, "Charging")
    assert read_sensors(tmp_path).mains is True
    set_battery(tmp_path, 20, "Discharging")
    assert read_sensors(tmp_path).mains is False
    set_mains(tmp_path, True)
    assert read_sensors(tmp_path).mains is True
