"""The checks of the machine below the daemon: groups, load, heat, supply, clock, what the loop and disk take.

A sensor that is missing is no fault: it passes, and says so.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from brain_service.hardware.cgroups import CgroupMemory, read_cgroup_memory
from brain_service.hardware.clock import ClockState, kernel_synchronised, read_clock
from brain_service.hardware.thermals import Sensors, read_sensors
from brain_service.hardware.throttling import Throttling, read_throttling, vcgencmd_word
from brain_service.health.check import Check
from brain_service.health.disk_probe import DiskView

__all__ = [
    "cgroup_check",
    "clock_check",
    "cpu_check",
    "event_loop_check",
    "host_checks",
    "power_check",
    "temperature_check",
    "write_latency_check",
]

LOAD_WARN = 4.0  # processes that want a core, a core: a training at idle weight counts as one
SOFT_C, HARD_C = 80.0, 85.0  # where a Raspberry Pi begins to slow down, and where it does so hard
LAG_WARN_S = 0.1
WRITE_WARN_S, WRITE_FAIL_S = 0.5, 10.0
MEMORY_SHARE_WARN = 0.9
CMDLINE_FIX = (
    "sudo sed -i '1s/$/ cgroup_enable=memory/' /boot/firmware/cmdline.txt && sudo reboot"
    "  # Memory* limits of units do nothing until then"
)


def host_checks(
    sysfs: Path = Path("/sys"), root: Path = Path("/"), newest: tuple[Path, ...] = ()
) -> dict[str, Check]:
    """Look at the machine; `newest` are files whose times the clock is held against. Reads files: off any loop."""
    sensors = read_sensors(sysfs)
    clock = read_clock(root, kernel=kernel_synchronised())
    return {
        "cgroup": cgroup_check(read_cgroup_memory(root)),
        "cpu": cpu_check(psutil.getloadavg()[0], os.cpu_count() or 1),
        "temperature": temperature_check(sensors),
        "power": power_check(sensors, read_throttling(sysfs, vcgencmd_word)),
        "clock": clock_check(clock, _ahead_s(newest)),
    }


def cgroup_check(found: CgroupMemory) -> Check:
    """Whether memory limits of units work, and how near this one is to its own, in bytes."""
    if found.controller is False:
        if found.disabled_by_cmdline:
            reason = (
                "cgroup_disable=memory is on the kernel's command line: a training's memory limit does nothing"
            )
            return Check("warn", "no memory controller", "", reason, fix=CMDLINE_FIX)
        reason = "the kernel has no memory controller for this process: memory limits do nothing"
        return Check("warn", "no memory controller", "", reason, fix=CMDLINE_FIX)
    if found.limit_bytes is None:
        told = "no unified cgroup hierarchy here" if found.controller is None else "no limit"
        return Check("pass", found.used_bytes, "bytes", told)
    used_bytes = found.used_bytes or 0
    if used_bytes > MEMORY_SHARE_WARN * found.limit_bytes:
        reason = f"above {MEMORY_SHARE_WARN:.0%} of the unit's limit"
        fix = "sudo systemctl set-property continuon-brain MemoryMax=<more>"
        return Check("warn", used_bytes, "bytes", reason, found.limit_bytes, fix)
    return Check("pass", used_bytes, "bytes", limit=found.limit_bytes)


def cpu_check(load: float, cores: int) -> Check:
    """Processes that want a core, on average over a minute, a core."""
    share = round(load / cores, 2)
    if share > LOAD_WARN:
        reason = f"{load:.1f} processes want {cores} cores"
        return Check("warn", share, "per core", reason, LOAD_WARN, "top -o %CPU shows which; stop what may wait")
    return Check("pass", share, "per core", limit=LOAD_WARN)


def temperature_check(sensors: Sensors) -> Check:
    """The hottest zone in degrees Celsius, against where the processor slows down."""
    now_c = sensors.temperature_c
    if now_c is None:
        return Check("pass", None, "C", "no sensor here", SOFT_C)
    fix = "improve the cooling: a fan, or the case open"
    if now_c >= HARD_C:
        return Check("fail", now_c, "C", f"above {HARD_C:.0f} C: the processor slows down hard", HARD_C, fix)
    if now_c >= SOFT_C:
        return Check("warn", now_c, "C", f"above {SOFT_C:.0f} C: the processor slows down", SOFT_C, fix)
    return Check("pass", now_c, "C", limit=SOFT_C)


def power_check(sensors: Sensors, throttling: Throttling | None) -> Check:
    """Supply and throttling: what the firmware does now warns, what it did since the boot is told."""
    now = list(throttling.now) if throttling else []
    if sensors.under_voltage and "under-voltage" not in now:
        now.insert(0, "under-voltage")
    since = throttling.since_boot if throttling else ()
    told = f"since boot: {', '.join(since)}" if since else ""
    if now:
        weak = "under-voltage" in now
        fix = "use the official 27 W supply and a short cable" if weak else "improve the cooling"
        return Check("warn", ", ".join(now), "", "; ".join(filter(None, ("now", told))), "none", fix)
    if sensors.under_voltage is None and throttling is None:
        return Check("pass", None, "", "no sensor here", "none")
    return Check("pass", "well", "", told, "none")


def clock_check(clock: ClockState, ahead_s: float = 0.0) -> Check:
    """Whether the clock is set by a time server; never fails, since a robot may have no network.

    `ahead_s` is how far the newest of our own files lies in the future: the clock was set back.
    """
    said = {True: "synchronised", False: "not synchronised", None: "unknown"}[clock.synchronised]
    fix = "sudo timedatectl set-ntp true; chronyc or timedatectl timesync-status tells more"
    if not clock.plausible:
        return Check("warn", said, "", f"the year is {clock.year}: times of episodes will be wrong", fix=fix)
    if ahead_s > 60:
        reason = f"the newest file here is {ahead_s:.0f} s in the future: the clock was set back"
        return Check("warn", said, "", reason, 60, fix)
    if clock.synchronised is False:
        return Check("warn", said, "", "no time server was reached since the boot", fix=fix)
    return Check("pass", said, "", "" if clock.synchronised else "nobody here can be asked")


def event_loop_check(worst_s: float) -> Check:
    """The worst lateness of the event loop in the last minute, in milliseconds."""
    worst_ms = round(1e3 * worst_s, 1)
    limit_ms = 1e3 * LAG_WARN_S
    if worst_s > LAG_WARN_S:
        reason = f"everything waited for {worst_ms:g} ms: the machine was too busy, or the loop blocked"
        return Check(
            "warn", worst_ms, "ms", reason, limit_ms, "see 'cpu'; if that is low, report the daemon's log"
        )
    return Check("pass", worst_ms, "ms", limit=limit_ms)


def write_latency_check(view: DiskView) -> Check:
    """How long the medium took for one small durable write, in milliseconds."""
    fix = "check the medium (brain doctor; dmesg | grep -e mmc -e I/O), or use an SSD"
    limit_ms = 1e3 * WRITE_WARN_S
    if view.error:
        return Check("fail", None, "ms", view.error, limit_ms, fix)
    if view.waiting_s > WRITE_FAIL_S:
        reason = f"a write of 4 kB has been waiting for {view.waiting_s:.0f} s"
        return Check("fail", round(1e3 * view.waiting_s), "ms", reason, limit_ms, fix)
    if view.latency_s is None:
        return Check("pass", None, "ms", "not measured yet", limit_ms)
    latency_ms = round(1e3 * view.latency_s, 2)
    if view.latency_s > WRITE_WARN_S:
        return Check("warn", latency_ms, "ms", f"a write of 4 kB took {latency_ms:g} ms", limit_ms, fix)
    return Check("pass", latency_ms, "ms", limit=limit_ms)


def _ahead_s(paths: tuple[Path, ...]) -> float:
    """Return how far the newest of some files lies in the future, in seconds; 0 where none does."""
    times: Mapping[Path, float] = {path: _modified_s(path) for path in paths}
    return max(0.0, max(times.values(), default=0.0) - time.time())


def _modified_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
