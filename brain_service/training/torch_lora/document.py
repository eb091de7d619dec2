"""What the document beside a run's adapters says: read without torch, and held against the numbers beside it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brain_service.errors import CorruptDataError, NotFoundError

__all__ = ["AdapterDocument", "read_document"]

DOCUMENT = "adapters.json"
FILE = "adapters.safetensors"
NEXT = "adapters.next.safetensors"
"""The file of a save that a kill cut short once its document was in place."""


@dataclass(frozen=True)
class AdapterDocument:
    """One run's adapters; `extra` is what the run added: `base`, `config`, `dataset`, `steps` and so on."""

    sha256: str
    """Of the adapters' file."""
    base_sha256: str
    rank: int
    alpha: float
    layers: tuple[str, ...]
    size_bytes: int
    extra: Mapping[str, Any]

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return int(self.extra["steps"])

    def provenance(self) -> dict[str, Any]:
        """Return what a merged checkpoint and its bundle say of the adapters in them."""
        return {
            "sha256": self.sha256,
            "base": self.extra["base"]["name"],
            "base_sha256": self.base_sha256,
            "rank": self.rank,
            "alpha": self.alpha,
            "layers": list(self.layers),
        }


def read_document(folder: Path) -> AdapterDocument:
    """Return what is known of the adapters in a run's folder, once their file is what was written.

    Raises:
        NotFoundError: there are none: the run is not over.
        CorruptDataError: the document cannot be read, or the file's hash does not hold.
    """
    path = folder / DOCUMENT
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{folder} holds no adapters yet: the run is not over; the same training goes on from where it stands",
            field="run",
        ) from error
    except (OSError, ValueError) as error:
        raise CorruptDataError(f"{path}: {error}; train the adapters again") from error
    try:
        data = _numbers(folder, str(document["sha256"]))
        found = AdapterDocument(
            sha256=str(document["sha256"]),
            base_sha256=str(document["base_sha256"]),
            rank=int(document["rank"]),
            alpha=float(document["alpha"]),
            layers=tuple(map(str, document["layers"])),
            size_bytes=len(data),
            extra=dict(document["extra"]),
        )
        found.provenance(), found.steps
        for name in ("config", "control_period_s", "dataset"):
            found.extra[name]
        found.extra["base"]["source"]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(f"{path}: {error!r} is missing or wrong; train the adapters again") from error
    return found


def _numbers(folder: Path, sha256: str) -> bytes:
    for path in (folder / FILE, folder / NEXT):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CorruptDataError(f"{path}: {error}; train the adapters again") from error
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    raise CorruptDataError(
        f"{folder / FILE}: missing, or its SHA-256 is not the document's; train the adapters again"
    )
