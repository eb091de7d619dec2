"""What is measured all the time, in the daemon itself: the event loop's lateness and the medium's."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from brain_service.hardware.accelerators import hailo_obstacle, hailo_parts
from brain_service.hardware.hailo_versions import HailoVersions, read_hailo_versions
from brain_service.health.disk_probe import DiskProbe
from brain_service.health.loop_lag import LoopLag

__all__ = ["HailoLook", "HailoView", "Vitals", "open_vitals"]

_KEPT_S = 60.0


class HailoView(NamedTuple):
    """Whether a Hailo is on the bus, why it cannot be used if so, and the versions of its parts."""

    present: bool
    obstacle: str | None
    versions: HailoVersions


class HailoLook:
    """Looks at a Hailo's files once a minute at most: some hundred of them are asked for."""

    def __init__(self, sysfs: Path) -> None:
        self._sysfs = sysfs
        self._looked_s = float("-inf")
        self._view = HailoView(False, None, HailoVersions(None, None, ()))

    def view(self) -> HailoView:
        """Return what is there; reads files now and then, so keep it off an event loop."""
        if time.monotonic() - self._looked_s > _KEPT_S:
            if hailo_parts(self._sysfs)["pci"]["found"]:
                self._view = HailoView(True, hailo_obstacle(self._sysfs), read_hailo_versions(self._sysfs))
            self._looked_s = time.monotonic()
        return self._view


@dataclass(frozen=True)
class Vitals:
    """The meters that run beside the daemon's work, and what is not looked at each time."""

    loop_lag: LoopLag
    disk: DiskProbe
    hailo: HailoLook


@contextlib.asynccontextmanager
async def open_vitals(data_dir: Path, sysfs: Path) -> AsyncIterator[Vitals]:
    """Run the meters for a block."""
    vitals = Vitals(LoopLag(), DiskProbe(data_dir), HailoLook(sysfs))
    measuring = asyncio.create_task(vitals.loop_lag.run())
    vitals.disk.start()
    try:
        yield vitals
    finally:
        measuring.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await measuring
        await asyncio.to_thread(vitals.disk.stop)
