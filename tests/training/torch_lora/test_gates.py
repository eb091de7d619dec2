"""When a fine-tuning may not run: while the robot works, is hot or low, and where nobody can tell."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from brain_service.errors import UnavailableError
from brain_service.settings import GateSettings, LoraSettings, Settings
from brain_service.training.torch_lora.activity import NEVER_S, Activity, daemon_runs, look_for_activity
from brain_service.training.torch_lora.gates import SENSORS, LoraGates
from tests.hardware.sysfs import set_battery, set_mains, set_temperature
from tests.processes import running_daemon

AT_REST = Activity(NEVER_S, 0)


def well(sysfs: Path) -> None:
    set_temperature(sysfs, 50)
    set_battery(sysfs, 80)


def gates(sysfs: Path, activity: list[Activity] | None = None, **lora: Any) -> LoraGates:
    settings = Settings(
        data_dir=sysfs / "brain",
        gates=GateSettings(sysfs=sysfs, poll_interval_s=0),
        lora=LoraSettings(**lora),
    )
    return LoraGates(settings, look=None if activity is None else lambda: activity[-1])


def test_a_robot_at_rest_that_is_cool_and_charged_may_train(tmp_path: Path) -> None:
    well(tmp_path)
    open_gates = gates(tmp_path, [AT_REST])
    assert open_gates.reason() == ""
    open_gates.require_sensors()


def test_each_condition_shuts_the_gate_while_a_run_goes_on_and_opens_it_again(tmp_path: Path) -> None:
    well(tmp_path)
    seen = [AT_REST]
    gate = gates(tmp_path, seen, idle_s=30)
    for activity, told in (
        (Activity(2.0, 0), "a session acted 2 s ago; goes on after 30 s without"),
        (Activity(31.0, 1), "1 episodes are being recorded"),
    ):
        seen.append(activity)
        assert told in gate.reason()
        seen.append(AT_REST)
        assert gate.reason() == ""
    set_temperature(tmp_path, 75)
    assert "75 C, the limit is 75 C" in gate.reason()
    set_temperature(tmp_path, 60)
    assert gate.reason() == ""
    set_battery(tmp_path, 39)
    assert "battery at 39%, the least is 40%" in gate.reason()
    set_mains(tmp_path, True)
    assert gate.reason() == ""


@pytest.mark.parametrize("sensor", sorted(SENSORS))
def test_a_missing_sensor_shuts_the_gate_unless_the_settings_allow_it(sensor: str, tmp_path: Path) -> None:
    activity = AT_REST
    if sensor != "temperature":
        set_temperature(tmp_path, 50)
    if sensor != "battery":
        set_battery(tmp_path, 80)
    if sensor == "sessions":
        activity = Activity(None, 0)
    if sensor == "episodes":
        activity = Activity(NEVER_S, None)
    shut = gates(tmp_path, [activity])
    assert f"sensor '{sensor}' is missing" in shut.reason()
    assert f'lora.allow_missing = ["{sensor}"]' in shut.reason()
    with pytest.raises(UnavailableError, match=f"sensor '{sensor}' is missing") as no:
        shut.require_sensors()
    assert no.value.problem()["missing"] == [sensor]
    allowed = gates(tmp_path, [activity], allow_missing=(sensor,))
    allowed.require_sensors()
    assert allowed.reason() == ""
    others = tuple(other for other in SENSORS if other != sensor)
    assert gates(tmp_path, [activity], allow_missing=others).reason()


def test_a_sensor_that_vanishes_while_a_run_goes_on_holds_it(tmp_path: Path) -> None:
    well(tmp_path)
    gate = gates(tmp_path, [AT_REST])
    assert gate.reason() == ""
    for zone in tmp_path.glob("class/thermal/*/temp"):
        zone.unlink()
    assert "sensor 'temperature' is missing" in gate.reason()
    well(tmp_path)
    assert gate.reason() == ""


def test_a_mains_supply_is_as_good_as_a_battery(tmp_path: Path) -> None:
    set_temperature(tmp_path, 50)
    set_mains(tmp_path, True)
    assert gates(tmp_path, [AT_REST]).reason() == ""
    set_mains(tmp_path, False)
    assert "sensor 'battery' is missing" in gates(tmp_path, [AT_REST]).reason()


def test_a_gate_that_is_switched_off_needs_no_sensor(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path / "brain",
        gates=GateSettings(sysfs=tmp_path, max_temperature_c=None, min_battery_share=None),
    )
    LoraGates(settings, look=lambda: AT_REST).require_sensors()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


def test_without_a_daemon_a_locked_log_is_an_episode_being_recorded(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert look_for_activity(settings) == AT_REST
    with locked(settings.episodes_dir / "one.jsonl"):
        assert look_for_activity(settings) == Activity(NEVER_S, 1)
    assert look_for_activity(settings) == AT_REST


def test_a_daemon_that_does_not_answer_leaves_nothing_known(tmp_path: Path) -> None:
    assert daemon_runs(tmp_path) is False
    with locked(tmp_path / ".lock"):
        assert daemon_runs(tmp_path) is True
        assert look_for_activity(Settings(data_dir=tmp_path)) == Activity(None, None)


def test_without_the_kernels_list_of_locks_nothing_is_known(tmp_path: Path) -> None:
    assert look_for_activity(Settings(data_dir=tmp_path), tmp_path / "locks") == Activity(None, None)


@pytest.mark.parametrize("tokens", [False, True])
def test_a_daemon_tells_of_the_episode_that_it_records(tokens: bool, tmp_path: Path) -> None:
    data_dir, more, headers = tmp_path / "brain", [], {}
    if tokens:
        (tmp_path / "tokens").write_text("# ours\n0123456789abcdef control,operate,read # robot\n")
        more, headers = ["--tokens-file", str(tmp_path / "tokens")], {"Authorization": "Bearer 0123456789abcdef"}
    with running_daemon(data_dir, *more) as daemon:
        settings = Settings(data_dir=data_dir, tokens_file=tmp_path / "tokens" if tokens else None)
        assert look_for_activity(settings) == AT_REST
        client = httpx.Client(base_url=daemon.url, headers=headers)
        episode = client.post("/episodes", json={"xr_mode": "trainer"}).json()["episode_id"]
        assert look_for_activity(settings) == Activity(NEVER_S, 1)
        client.post(
            f"/episodes/{episode}/steps",
            json={"step_index": 0, "observation": {"s": [1.0]}, "action": {"a": [1.0]}, "is_terminal": True},
        ).raise_for_status()
        client.post(f"/episodes/{episode}/end", json={"reason": "terminated"}).raise_for_status()
        assert look_for_activity(settings) == AT_REST
        if tokens:
            assert look_for_activity(Settings(data_dir=data_dir)) == Activity(None, None)
    assert look_for_activity(settings) == AT_REST
