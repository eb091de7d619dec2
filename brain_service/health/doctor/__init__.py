"""The doctor: what is wrong with the machine below the daemon, and the command that mends it. Needs no daemon."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from brain_service.health.check import Check
from brain_service.health.doctor.accelerator import hailo_probe
from brain_service.health.doctor.kernel import (
    clock_probe,
    memory_cgroup_probe,
    power_probe,
    swap_probe,
    temperature_probe,
    watchdog_probe,
)
from brain_service.health.doctor.machine import Machine
from brain_service.health.doctor.service import (
    data_dir_probe,
    last_start_probe,
    port_probe,
    socket_probe,
    tokens_probe,
    unit_probe,
)
from brain_service.health.doctor.software import packages_probe, python_probe, speed_probe
from brain_service.health.doctor.storage import errors_probe, mount_probe, room_probe, wear_probe

__all__ = ["PROBES", "Machine", "examine"]

PROBES: Mapping[str, Callable[[Machine], Check]] = MappingProxyType(
    {
        "python": python_probe,
        "packages": packages_probe,
        "speed": speed_probe,
        "unit": unit_probe,
        "last_start": last_start_probe,
        "data_dir": data_dir_probe,
        "tokens": tokens_probe,
        "socket": socket_probe,
        "port": port_probe,
        "memory_cgroup": memory_cgroup_probe,
        "swap": swap_probe,
        "watchdog": watchdog_probe,
        "mount": mount_probe,
        "medium_errors": errors_probe,
        "medium_wear": wear_probe,
        "disk": room_probe,
        "temperature": temperature_probe,
        "power": power_probe,
        "clock": clock_probe,
        "hailo": hailo_probe,
    }
)


def examine(machine: Machine) -> dict[str, Check]:
    """Return what every probe finds, in order; one that may not look warns and says so."""
    return {name: _ask(probe, machine) for name, probe in PROBES.items()}


def _ask(probe: Callable[[Machine], Check], machine: Machine) -> Check:
    try:
        return probe(machine)
    except OSError as error:
        return Check("warn", None, "", f"cannot look: {error}", fix="sudo brain doctor")
