"""Probe of a Hailo: on the bus, its driver, its device file, its library, and whether their versions agree."""

from brain_service.hardware.accelerators import hailo_parts
from brain_service.hardware.hailo_versions import read_hailo_versions
from brain_service.health.check import Check
from brain_service.health.doctor.machine import Machine

__all__ = ["hailo_probe"]


def hailo_probe(machine: Machine) -> Check:
    """Each part of a Hailo; a machine without one passes, unless its software waits for one."""
    sysfs, dev = machine.root / "sys", machine.root / "dev"
    parts = hailo_parts(sysfs, dev, machine.root)
    versions = read_hailo_versions(sysfs, machine.root)
    installed = ", ".join(
        f"{name} {value}"
        for name, value in (
            ("driver", versions.driver),
            ("library", versions.library),
            ("firmware", ", ".join(versions.firmware_files)),
        )
        if value
    )
    if not parts["pci"]["found"]:
        if versions.library and "hailo" in machine.settings.inference.backends and versions.driver:
            fix = "power off and reseat the HAT; sudo raspi-config enables PCIe"
            return Check("warn", "not on the bus", "", f"its software is here ({installed})", fix=fix)
        return Check("pass", "not present", "")
    names = ", ".join(chip["name"] for chip in parts["pci"]["found"])
    if versions.mismatch:
        fix = "sudo apt update && sudo apt install --reinstall hailo-all && sudo reboot"
        return Check("fail", names, "", versions.mismatch, fix=fix)
    reasons = [part["reason"] for name, part in parts.items() if part["reason"] and name != "pci"]
    if reasons:
        fix = "sudo apt install hailo-all && sudo reboot"
        if all(reason.startswith("no permission") for reason in reasons):
            fix = "sudo usermod -aG video continuon && sudo udevadm trigger"
        return Check("fail", names, "", "; ".join(reasons), fix=fix)
    return Check("pass", names, "", installed)
