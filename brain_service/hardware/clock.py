"""Whether the clock is set by a time server: a Raspberry Pi without a battery boots with the time of its stop."""

import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

__all__ = ["ClockState", "kernel_synchronised", "read_clock"]

ROOT = Path("/")
PROGRAM_YEAR = 2024
"""No clock that is right shows an earlier one: this program did not exist."""

_STA_UNSYNC, _TIME_ERROR = 0x0040, 5
_STAMP = "run/systemd/timesync/synchronized"  # touched by systemd-timesyncd when it has set the clock


class _Timex(ctypes.Structure):
    """`struct timex` of adjtimex(2), with room to spare at its end."""

    _fields_: ClassVar = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 512),
    ]


@dataclass(frozen=True)
class ClockState:
    """`synchronised` is None where nobody can be asked; `plausible` is false in a year before this program's."""

    synchronised: bool | None
    plausible: bool
    year: int


def read_clock(root: Path = ROOT, *, now_s: float | None = None, kernel: bool | None = None) -> ClockState:
    """Ask the time daemon's stamp below `root`, else what the kernel said (`kernel`); starts no process."""
    year = time.gmtime(time.time() if now_s is None else now_s).tm_year
    stamped = (root / _STAMP).exists()
    return ClockState(True if stamped else kernel, year >= PROGRAM_YEAR, year)


def kernel_synchronised() -> bool | None:
    """Ask the kernel (adjtimex, changing nothing); None where it may not be asked, as in a sandbox."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        state = _Timex()
        answer = libc.adjtimex(ctypes.byref(state))
    except (OSError, AttributeError):
        return None
    if answer < 0 or os.name != "posix":
        return None
    return not (state.status & _STA_UNSYNC or answer == _TIME_ERROR)
