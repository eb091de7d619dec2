"""The machine that the doctor looks at: a root directory and what cannot be read below one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from brain_service.settings import Settings

__all__ = ["UNIT", "Machine", "daemon_pid", "read_text", "unit_values"]

UNIT = "continuon-brain.service"
_UNIT_PLACES = (
    "etc/systemd/system",
    "usr/local/lib/systemd/system",
    "lib/systemd/system",
    "usr/lib/systemd/system",
)


def _unknown(_: str) -> str | None:
    return None


def _no_word() -> int | None:
    return None


@dataclass(frozen=True)
class Machine:
    """Everything a probe may ask. A probe is a pure function of it: tests give it a tree of files.

    `requirements` are the program's own (`fastapi>=0.130`), `version_of` returns the installed version of one,
    `units` is where this version's own units lie (None where it does not bring them), `kernel_clock` what the
    kernel says of the clock, `throttled` the firmware's word, `uid` who asks.
    """

    root: Path
    settings: Settings
    python: tuple[int, int, int] = (3, 11, 0)
    requirements: tuple[str, ...] = ()
    version_of: Callable[[str], str | None] = field(default=_unknown, repr=False)
    units: Path | None = None
    kernel_clock: bool | None = None
    throttled: Callable[[], int | None] = field(default=_no_word, repr=False)
    now_s: float = 0.0
    uid: int = 0

    def path(self, absolute: Path | str) -> Path:
        """Return where a path of the machine lies below the root."""
        return self.root / str(absolute).lstrip("/")

    @property
    def unit(self) -> Path | None:
        """The installed unit of the daemon, the one that systemd would take."""
        places = (self.root / place / UNIT for place in _UNIT_PLACES)
        return next((path for path in places if path.is_file()), None)


def read_text(path: Path) -> str:
    """Return a file's text without the space around it; nothing where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip().strip("\x00")
    except OSError:
        return ""


def unit_values(unit: Path, name: str) -> list[str]:
    """Return the values that a unit gives a directive, in order."""
    return [line.partition("=")[2] for line in read_text(unit).splitlines() if line.startswith(f"{name}=")]


def daemon_pid(machine: Machine) -> int | None:
    """Return who holds the data directory's lock, from the kernel's list of locks; None where nobody does."""
    try:
        inode = (machine.path(machine.settings.data_dir) / ".lock").stat().st_ino
    except OSError:
        return None
    for line in read_text(machine.root / "proc/locks").splitlines():
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[5].rsplit(":", 1)[-1] == str(inode):
            return int(words[4])
    return None
