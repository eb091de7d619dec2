"""`run.json`: what the run in an output directory was asked to do, so that another one does not go on in it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from brain_service.datasets.places import Place
from brain_service.errors import CorruptDataError, InvalidError
from brain_service.training.config import TrainConfig
from brain_service.training.run import FREE

__all__ = ["RECORD_FILE", "RunRecord", "default_run_id", "read_record"]

RECORD_FILE = "run.json"
SCHEMA = "continuon-brain/run/1"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run: its settings, and the dataset version that it began with, whatever is newest by now."""

    run_id: str
    data_path: str
    """As it was asked for."""
    dataset: str
    """The version's own place."""
    config: Mapping[str, Any]

    def write(self, output: Place) -> None:
        """Write it to the output directory.

        Raises:
            ForbiddenError: these credentials may not write there.
            UnavailableError: it cannot be written.
        """
        document = {"schema": SCHEMA, **vars(self)}
        output.write(RECORD_FILE, json.dumps(document, indent=1).encode() + b"\n")

    def require_same(self, output: Place, run_id: str, data_path: str, config: TrainConfig) -> None:
        """Check that the output directory is that of the run that is asked for.

        Raises:
            InvalidError: it is another one's; names what differs.
        """
        wanted = {"run_id": run_id, "data_path": data_path, **_lasting(config.to_dict())}
        found = {"run_id": self.run_id, "data_path": self.data_path, **_lasting(self.config)}
        for name in sorted(wanted):
            if wanted[name] != found.get(name):
                raise InvalidError(
                    f"{output.location} holds run {self.run_id} with {name} {found.get(name)!r}, not "
                    f"{wanted[name]!r}; give this run an output directory of its own",
                    field=name,
                )


def _lasting(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in FREE}


def read_record(output: Place) -> RunRecord | None:
    """Return the record in an output directory, None where no run began there.

    Raises:
        CorruptDataError: it is not what was written.
        ForbiddenError: these credentials may not read there.
        UnavailableError: it cannot be read now.
    """
    data = output.read(RECORD_FILE)
    if data is None:
        return None
    place = f"{output.location}/{RECORD_FILE}"
    try:
        document = json.loads(data)
        schema = document.pop("schema")
        record = RunRecord(**document)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptDataError(f"{place}: {error}; give the run an output directory of its own") from error
    if schema != SCHEMA:
        raise CorruptDataError(f"{place}: schema {schema!r} is not {SCHEMA!r}; use the version that wrote it")
    return record


def default_run_id(location: str) -> str:
    """Return a run id after the last part of its output directory's name."""
    name = re.sub(r"[^a-z0-9-]+", "-", location.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-")
    return name[:40].strip("-") or "run"
