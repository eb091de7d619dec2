"""When a gate closes and opens again, on a sysfs tree that changes under it."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from brain_service.hardware.gate import Gate
from brain_service.settings import GateSettings
from tests.hardware.sysfs import set_battery, set_mains, set_temperature, set_under_voltage


class Time:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def gate(root: Path, clock: Time | None = None, **settings: Any) -> Gate:
    return Gate(GateSettings(sysfs=root, **({"poll_interval_s": 0.0} | settings)), clock=clock or Time())


def test_without_sensors_a_gate_is_open(tmp_path: Path) -> None:
    assert gate(tmp_path).reason() == ""


def test_heat_closes_at_one_temperature_and_opens_at_a_lower_one(tmp_path: Path) -> None:
    heat = gate(tmp_path, max_temperature_c=75, cool_down_c=5)
    closed = []
    for celsius in (74.9, 75.0, 72.0, 70.1, 70.0, 74.9, 76.0):
        set_temperature(tmp_path, celsius)
        closed.append(bool(heat.reason()))
    assert closed == [False, True, True, True, False, False, True]
    assert "76 C" in heat.reason() and "75 C" in heat.reason() and "70 C" in heat.reason()


def test_a_battery_closes_below_the_least_and_opens_above_it_or_with_a_charger(tmp_path: Path) -> None:
    battery = gate(tmp_path, min_battery_share=0.4, charge_margin=0.05)
    closed = []
    for percent in (40, 39, 42, 45, 39):
        set_battery(tmp_path, percent)
        closed.append(bool(battery.reason()))
    assert closed == [False, True, True, False, True]
    assert "39%" in battery.reason()
    set_mains(tmp_path, True)
    assert battery.reason() == ""


def test_under_voltage_closes_until_the_supply_was_quiet_for_a_while(tmp_path: Path) -> None:
    clock = Time()
    weak = gate(tmp_path, clock, under_voltage_quiet_s=30.0)
    set_under_voltage(tmp_path, True)
    assert "under-voltage" in weak.reason()
    set_under_voltage(tmp_path, False)
    clock.now_s = 29.0
    assert weak.reason()
    clock.now_s = 30.0
    assert weak.reason() == ""


def test_all_reasons_are_told(tmp_path: Path) -> None:
    set_temperature(tmp_path, 90)
    set_battery(tmp_path, 5)
    told = gate(tmp_path).reason()
    assert "90 C" in told and "5%" in told


def test_a_gate_may_be_switched_off(tmp_path: Path) -> None:
    set_temperature(tmp_path, 99)
    set_battery(tmp_path, 1)
    set_under_voltage(tmp_path, True)
    off: dict[str, Any] = {"max_temperature_c": None, "min_battery_share": None, "under_voltage_quiet_s": "none"}
    assert gate(tmp_path, **off).reason() == ""


def test_the_sensors_are_not_read_more_often_than_asked(tmp_path: Path) -> None:
    clock = Time()
    seldom = gate(tmp_path, clock, poll_interval_s=2.0)
    assert seldom.reason() == ""
    set_temperature(tmp_path, 90)
    clock.now_s = 1.9
    assert seldom.reason() == ""
    clock.now_s = 2.0
    assert seldom.reason()


def test_a_sensor_that_vanishes_does_not_keep_a_gate_closed(tmp_path: Path) -> None:
    heat = gate(tmp_path)
    set_temperature(tmp_path, 90)
    assert heat.reason()
    (tmp_path / "class/thermal/thermal_zone0/temp").unlink()
    assert heat.reason() == ""


@pytest.mark.parametrize("wrong", [{"max_temperature_c": 0}, {"min_battery_share": 1.5}, {"cool_down_c": -1}])
def test_an_impossible_limit_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GateSettings(**wrong)
