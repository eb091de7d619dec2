"""JAX or ONNX Runtime on the CPU: the one whose step was measured to be faster, the same from start to start."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from brain_service.durable import write_atomic

__all__ = ["Choice", "ChoiceFile", "choose"]

log = logging.getLogger(__name__)

MARGIN = 0.2
"""Another than the one chosen before must be faster by this share: less is noise of the measurement."""


@dataclass(frozen=True)
class Choice:
    """The chosen backend, and the median step of each in microseconds; none where the settings chose."""

    backend: str
    step_us: Mapping[str, float]

    @property
    def reason(self) -> str:
        """Both figures, for people."""
        if not self.step_us:
            return "set by inference.cpu_runtime"
        return " against ".join(f"{name} {us:.0f} us a step" for name, us in sorted(self.step_us.items()))


def choose(step_us: Mapping[str, float], before: str | None = None) -> Choice:
    """Return the faster one; the one chosen `before` unless it is slower by more than `MARGIN`."""
    fastest = min(step_us, key=lambda name: step_us[name])
    if before is not None and before in step_us and step_us[before] <= step_us[fastest] * (1 + MARGIN):
        fastest = before
    return Choice(fastest, dict(step_us))


class ChoiceFile:
    """The choice for one model on this machine with these runtimes, kept for the next start. Methods block."""

    def __init__(self, cache_dir: Path, model_id: str, packages: Mapping[str, str]) -> None:
        self._path = cache_dir / "backends" / f"{model_id}.json"
        self._versions = {backend: _version(package) for backend, package in packages.items()}

    def read(self) -> Choice | None:
        """Return what was chosen, None where nothing was or the runtimes were others."""
        try:
            document = json.loads(self._path.read_bytes())
            if document["versions"] != self._versions or document["backend"] not in self._versions:
                return None
            return Choice(document["backend"], {name: float(document["step_us"][name]) for name in self._versions})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, choice: Choice) -> None:
        """Keep a choice; a medium that takes nothing costs a measurement at the next start."""
        document: dict[str, Any] = {
            "backend": choice.backend,
            "step_us": dict(choice.step_us),
            "versions": self._versions,
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, json.dumps(document).encode())
        except OSError as error:
            log.warning("cannot keep the choice of the backend in %s: %s", self._path, error)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
