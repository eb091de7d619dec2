"""Versions of a Hailo's three parts, from files alone: kernel driver, library, firmware package.

HailoRT refuses to work where its driver is of another version than its library (HAILO_INVALID_DRIVER_VERSION).
"""

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HailoVersions", "read_hailo_versions"]

SYSFS, ROOT = Path("/sys"), Path("/")

_LIBRARIES = ("usr/lib/libhailort.so.*", "usr/lib/*/libhailort.so.*", "usr/local/lib/libhailort.so.*")
_FIRMWARE = ("lib/firmware/hailo/hailo*_fw*.bin", "usr/lib/firmware/hailo/hailo*_fw*.bin")
_DRIVERS = ("hailo_pci", "hailo1x_pci")


@dataclass(frozen=True)
class HailoVersions:
    """What is installed; None for what is not there or does not tell."""

    driver: str | None
    library: str | None
    firmware_files: tuple[str, ...]

    @property
    def mismatch(self) -> str:
        """Tell how driver and library differ; nothing where they agree or one is unknown."""
        if self.driver and self.library and self.driver != self.library:
            return f"the driver is {self.driver}, the library {self.library}; HailoRT wants them equal"
        return ""


def read_hailo_versions(sysfs: Path = SYSFS, root: Path = ROOT) -> HailoVersions:
    """Look for the driver in sysfs, for library and firmware below `root`."""
    versions = (sysfs / "module" / name / "version" for name in _DRIVERS)
    driver = next((text for path in versions if (text := _text(path))), None)
    names = [path.name for pattern in _LIBRARIES for path in sorted(root.glob(pattern))]
    numbers = [match[1] for name in names if (match := re.search(r"\.so\.(\d+\.\d+\.\d+)$", name))]
    firmware = tuple(sorted({path.name for pattern in _FIRMWARE for path in root.glob(pattern)}))
    return HailoVersions(driver, max(numbers, default=None, key=_ordered), firmware)


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
