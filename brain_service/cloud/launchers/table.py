"""Which launcher is for which target."""

from collections.abc import Callable, Mapping
from pathlib import Path

from brain_service.cloud.launchers import Launcher
from brain_service.cloud.launchers.local import LocalLauncher
from brain_service.cloud.launchers.queued_resource import QueuedResourceLauncher
from brain_service.cloud.launchers.vertex import VertexLauncher
from brain_service.errors import InvalidError
from brain_service.settings import CloudSettings

__all__ = ["TARGETS", "launcher_for"]

TARGETS: Mapping[str, Callable[[CloudSettings, Path, bool], Launcher]] = {
    "process": lambda _, folder, background: LocalLauncher(folder, background=background),
    "vertex": lambda settings, *_: VertexLauncher(settings),
    "queued_resource": lambda settings, *_: QueuedResourceLauncher(settings),
}


def launcher_for(target: str, settings: CloudSettings, folder: Path, background: bool = True) -> Launcher:
    """Return the launcher of a target; `folder` and `background` are for trainings on this machine.

    Raises:
        InvalidError: there is no such target.
        ConfigError: a setting that it needs is absent, or there are no credentials.
    """
    make = TARGETS.get(target)
    if make is None:
        raise InvalidError(f"target {target!r}: known are {', '.join(TARGETS)}", field="target")
    return make(settings, folder, background)
