"""Bundles on disk and the links and marks beside them. Every method blocks: call from a thread.

`active` and `previous` are what serves and what did before, `last_good` what came well through its probation;
`rejected.json` holds the models that were rolled back by themselves, with the evidence.
"""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from brain_service.durable import replace_symlink, write_atomic
from brain_service.errors import BrainError, CorruptDataError, NotFoundError, UnavailableError
from brain_service.export.bundle import Manifest, is_model_id, read_manifest

__all__ = ["ModelStore"]

log = logging.getLogger(__name__)

REJECTED = "rejected.json"


class ModelStore:
    """`models_dir`: one folder a bundle, the links, and the marks of rejected models."""

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
        """Return the model id that `active`, `previous` or `last_good` points at, None without such a link."""
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

    def mark_good(self, model_id: str) -> None:
        """Record that a model came well through its probation.

        Raises:
            UnavailableError: the folder cannot be written to.
        """
        try:
            replace_symlink(self._dir / "last_good", model_id)
        except OSError as error:
            raise UnavailableError(f"cannot record {model_id} as good in {self._dir}: {error}") from error

    def rejected(self) -> dict[str, dict[str, Any]]:
        """Return the rejected models with `at_ns` (Unix time) and `evidence`; none where the file is damaged."""
        try:
            document = json.loads((self._dir / REJECTED).read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("cannot read %s: %s; no model counts as rejected", self._dir / REJECTED, error)
            return {}
        marks = document.items() if isinstance(document, dict) else ()
        return {name: mark for name, mark in marks if isinstance(mark, dict)}

    def reject(self, model_id: str, evidence: str) -> None:
        """Mark a model: it is not activated by itself again.

        Raises:
            UnavailableError: the folder cannot be written to.
        """
        self._write_rejected(self.rejected() | {model_id: {"at_ns": time.time_ns(), "evidence": evidence}})

    def pardon(self, model_id: str) -> None:
        """Take a mark away, if there is one: an operator activated the model.

        Raises:
            UnavailableError: the folder cannot be written to.
        """
        marks = self.rejected()
        if marks.pop(model_id, None) is not None:
            self._write_rejected(marks)

    def _write_rejected(self, marks: dict[str, dict[str, Any]]) -> None:
        try:
            write_atomic(self._dir / REJECTED, json.dumps(marks, indent=1).encode())
        except OSError as error:
            raise UnavailableError(f"cannot write {self._dir / REJECTED}: {error}; free space there") from error

    def summaries(self) -> list[dict[str, Any]]:
        """Describe every bundle, newest first; an unreadable one with its error."""
        marks = self.rejected()
        found = [self._summary(model_id) | {"rejected": marks.get(model_id)} for model_id in self._ids()]
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
            "adapters": manifest.adapters,
            "quantisation": manifest.quantisation,
            "control_period_s": manifest.control_period_s,
            "evaluation": manifest.evaluation,
            "size_bytes": sum(entry.size_bytes for entry in manifest.files.values()),
            "error": None,
        }


def _unreadable(model_id: str, error: BrainError) -> dict[str, Any]:
    return {"model_id": model_id, "created_ns": 0, "error": error.detail}
