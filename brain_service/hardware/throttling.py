"""What a Raspberry Pi's firmware holds back, now and since the boot: weak supply, capped clock, heat.

Source: Raspberry Pi's documentation of `vcgencmd get_throttled` (bits 0-3 now, 16-19 since the boot). The kernel
shows the same word in sysfs on most models; where it does not, the command is asked, if it is there.
"""

import contextlib
import functools
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Throttling", "read_throttling", "vcgencmd_word"]

SYSFS = Path("/sys")

_PLACES = ("devices/platform/*/*firmware/get_throttled", "devices/platform/*firmware/get_throttled")
_BITS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}
_SINCE_BOOT = 16
_ASK_TIMEOUT_S = 2.0
_KEPT_S = 60.0

_asked: list[tuple[float, int | None]] = []


@dataclass(frozen=True)
class Throttling:
    """What the firmware does now, and what it did at any time since the boot, in words."""

    now: tuple[str, ...]
    since_boot: tuple[str, ...]

    @staticmethod
    def of(word: int) -> "Throttling":
        """Read the firmware's bits."""
        return Throttling(
            tuple(name for bit, name in _BITS.items() if word >> bit & 1),
            tuple(name for bit, name in _BITS.items() if word >> (bit + _SINCE_BOOT) & 1),
        )


def read_throttling(sysfs: Path = SYSFS, ask: Callable[[], int | None] | None = None) -> Throttling | None:
    """Return what the firmware says in sysfs, else what `ask` returns of it; None on a machine without one."""
    for path in _places(sysfs):
        with contextlib.suppress(OSError, ValueError):
            return Throttling.of(int(path.read_text().strip(), 16))
    word = ask() if ask is not None else None
    return None if word is None else Throttling.of(word)


@functools.lru_cache(maxsize=8)
def _places(sysfs: Path) -> tuple[Path, ...]:
    # Looked for once: a firmware comes with the machine.
    return tuple(path for pattern in _PLACES for path in sorted(sysfs.glob(pattern)))


def vcgencmd_word() -> int | None:
    """Return the word that `vcgencmd get_throttled` prints, kept for a minute; None where there is none.

    It starts a process: keep it off an event loop.
    """
    if shutil.which("vcgencmd") is None:
        return None
    if not _asked or time.monotonic() - _asked[-1][0] > _KEPT_S:
        word: int | None = None
        with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
            done = subprocess.run(
                # Where the firmware's tool lies differs between releases of the system.
                ("vcgencmd", "get_throttled"),  # noqa: S607
                capture_output=True,
                text=True,
                timeout=_ASK_TIMEOUT_S,
                check=False,
            )
            word = int(done.stdout.strip().removeprefix("throttled="), 16)
        _asked[:] = [(time.monotonic(), word)]
    return _asked[-1][1]
