"""Bundles on disk and the `active` and `previous` links beside them. Every method blocks: call from a thread."""

import os
from pathlib import Path
from typing import Any

from brain_service.durable import replace_symlink
from brain_service.errors import BrainError, CorruptDataError, NotFoundError, UnavailableError
from brain_service.export.bundle import Manifest, is_model_id, read_manifest

__all__ = ["ModelStore"]


class ModelStore:
    """`models_dir`: one folder a bundle, and two links that name what is served and what was before."""

    def __init__(self, models_dir: Path) -> None:
        self._dir = models_dir

    def path(self, model_id: str) -> Path:
        """Return a bundle's folder.

        Raises:
            NotFoundError: there is no such bundle; the message names those that are there.
        """
        path = self._dir / model_id
        if not is_model_id(model_id) or not path.is_dir():
            known = ", ".join(self._ids()) or "none yet: POST /pipeline or /export makes one"
            raise NotFoundError(f"no model {model_id!r}; models here: {known}", field="model_id")
        return path

    def linked(self, name: str) -> str | None:
        """Return the model id that `active` or `previous` points at, None without such a link."""
        try:
            return str((self._dir / name).readlink())
        except OSError:
            return None

    def point(self, active: str, previous: str | None) -> None:
        """Record what is served and what was before, each in one atomic step.

        Raises:
            UnavailableError: the folder cannot be written to; `active` is unchanged.
        """
        try:
            # `previous` first: a crash between the two leaves a model that works in `active`.
            if previous is not None:
                replace_symlink(self._dir / "previous", previous)
            replace_symlink(self._dir / "active", active)
        except OSError as error:
            raise UnavailableError(
                f"cannot record {active} as the active model in {self._dir}: {error}; "
                "the model that served before goes on"
            ) from error

    def summaries(self) -> list[dict[str, Any]]:
        """Describe every bundle, newest first; an unreadable one with its error."""
        found = [self._summary(model_id) for model_id in self._ids()]
        return sorted(found, key=lambda summary: -summary["created_ns"])

    def manifest(self, model_id: str) -> Manifest:
        """Return a bundle's manifest.

        Raises:
            NotFoundError: there is no such bundle.
            CorruptDataError: its manifest cannot be.
        """
        return read_manifest(self.path(model_id))

    def _ids(self) -> list[str]:
        try:
            names = sorted(entry.name for entry in os.scandir(self._dir) if entry.is_dir(follow_symlinks=False))
        except OSError:
            return []
        return [name for name in names if is_model_id(name)]

    def _summary(self, model_id: str) -> dict[str, Any]:
        try:
            manifest = read_manifest(self._dir / model_id)
        except (CorruptDataError, NotFoundError) as error:
            return _unreadable(model_id, error)
        return {
            "model_id": model_id,
            "created_ns": manifest.created_ns,
            "source_run": manifest.source_run,
            "quantisation": manifest.quantisation,
            "control_period_s": manifest.control_period_s,
            "evaluation": manifest.evaluation,
            "size_bytes": sum(entry.size_bytes for entry in manifest.files.values()),
            "error": None,
        }


def _unreadable(model_id: str, error: BrainError) -> dict[str, Any]:
    return {"model_id": model_id, "created_ns": 0, "error": error.detail}
