"""How long ago something was, on a machine whose clock may be set in between and which may be restarted."""

import time
from pathlib import Path

__all__ = ["elapsed_s", "moment"]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def moment() -> str:
    """Return a mark of now that may be stored: the boot, its uptime and the time, both in int64 ns."""
    return f"{_boot()}:{time.clock_gettime_ns(time.CLOCK_BOOTTIME)}:{time.time_ns()}"


def elapsed_s(mark: str) -> float:
    """Return the seconds since a mark of `moment`, never below 0.

    Within one boot the uptime counts, which nobody sets; a robot without a battery for its clock starts in the
    past and then jumps. Across a restart the time of day is all there is.
    """
    boot, uptime_ns, then_ns = mark.split(":")
    if boot == _boot():
        return max(0.0, (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - int(uptime_ns)) / 1e9)
    return max(0.0, (time.time_ns() - int(then_ns)) / 1e9)
