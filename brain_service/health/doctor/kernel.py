"""Probes of the machine as the kernel shows it: control groups, watchdog, swap, heat, supply, clock."""

from pathlib import Path

from brain_service.hardware.cgroups import read_cgroup_memory
from brain_service.hardware.clock import read_clock
from brain_service.hardware.thermals import read_sensors
from brain_service.hardware.throttling import read_throttling
from brain_service.health.check import Check
from brain_service.health.doctor.machine import Machine, read_text
from brain_service.health.host import cgroup_check, clock_check, power_check, temperature_check

__all__ = [
    "clock_probe",
    "memory_cgroup_probe",
    "power_probe",
    "swap_probe",
    "temperature_probe",
    "watchdog_probe",
]

SMALL_BYTES = 6 * 1024**3  # below it a training and the daemon together may want more than there is
_WATCHDOG_FIX = (
    "printf '[Manager]\\nRuntimeWatchdogSec=15\\n' | sudo install -D -m 644 /dev/stdin "
    "/etc/systemd/system.conf.d/watchdog.conf && sudo systemctl daemon-reexec"
)
_ZRAM_FIX = "sudo apt install zram-tools && sudo systemctl enable --now zramswap"


def memory_cgroup_probe(machine: Machine) -> Check:
    """Whether the memory limits of units work."""
    return cgroup_check(read_cgroup_memory(machine.root))


def watchdog_probe(machine: Machine) -> Check:
    """Whether a hardware watchdog is there, and systemd feeds it: a frozen kernel then starts again by itself."""
    device = next(iter(sorted(machine.root.glob("sys/class/watchdog/watchdog*"))), None)
    present = device is not None or machine.path("/dev/watchdog").exists()
    if not present:
        if "Raspberry Pi" not in read_text(machine.root / "proc/device-tree/model"):
            return Check("pass", "none", "", "this machine has no watchdog")
        fix = "echo dtparam=watchdog=on | sudo tee -a /boot/firmware/config.txt && sudo reboot"
        return Check("warn", "none", "", "the watchdog is switched off: a frozen kernel stays frozen", fix=fix)
    fed = device is not None and read_text(device / "state") == "active"
    if fed or _runtime_watchdog(machine.root):
        return Check("pass", "in use", "")
    return Check(
        "warn",
        "not in use",
        "",
        "systemd does not feed the watchdog: a frozen kernel stays frozen",
        fix=_WATCHDOG_FIX,
    )


def swap_probe(machine: Machine) -> Check:
    """Swap: compressed memory is right, a file on an SD card wears it out and stalls capture."""
    areas = [line.split()[:3] for line in read_text(machine.root / "proc/swaps").splitlines()[1:]]
    sizes = {name: int(size) * 1024 for name, kind, size in areas if size.isdigit()}
    on_disk = [name for name in sizes if "zram" not in Path(name).name]
    on_card = [name for name in on_disk if not name.startswith("/dev/") or "mmcblk" in name]
    total_bytes = sum(sizes.values())
    if on_card:
        fix = f"sudo systemctl disable --now dphys-swapfile; sudo swapoff -a; {_ZRAM_FIX}"
        reason = f"{', '.join(on_card)}: swapping wears the card and makes capture wait"
        return Check("warn", total_bytes, "bytes", reason, fix=fix)
    if not sizes and 0 < _memory_bytes(machine.root) < SMALL_BYTES:
        return Check("warn", 0, "bytes", "little memory and no swap: a training may be killed", fix=_ZRAM_FIX)
    return Check("pass", total_bytes, "bytes", ", ".join(sizes) or "none, and memory enough")


def temperature_probe(machine: Machine) -> Check:
    """The hottest zone now."""
    return temperature_check(read_sensors(machine.root / "sys"))


def power_probe(machine: Machine) -> Check:
    """Supply and throttling, now and since the boot; what happened since the boot warns here."""
    sysfs = machine.root / "sys"
    throttling = read_throttling(sysfs, machine.throttled)
    found = power_check(read_sensors(sysfs), throttling)
    if found.status == "pass" and throttling is not None and throttling.since_boot:
        fix = "use the official 27 W supply and a short cable; improve the cooling"
        return Check("warn", found.observed_value, "", found.reason, "none", fix)
    return found


def clock_probe(machine: Machine) -> Check:
    """Whether a time server set the clock."""
    newest = 0.0
    for path in (machine.settings.database, machine.settings.episodes_dir):
        try:
            newest = max(newest, machine.path(path).stat().st_mtime)
        except OSError:
            continue
    clock = read_clock(machine.root, now_s=machine.now_s, kernel=machine.kernel_clock)
    return clock_check(clock, max(0.0, newest - machine.now_s))


def _runtime_watchdog(root: Path) -> bool:
    files = [root / "etc/systemd/system.conf", *sorted(root.glob("etc/systemd/system.conf.d/*.conf"))]
    found = [
        line.partition("=")[2].strip()
        for file in files
        for line in read_text(file).splitlines()
        if line.strip().startswith("RuntimeWatchdogSec=")
    ]
    return bool(found) and found[-1] not in ("", "0", "off")


def _memory_bytes(root: Path) -> int:
    for line in read_text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0
