"""What is known of the trials: `trials.jsonl`, a line at a time, so that a search that was killed goes on."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brain_service.durable import write_atomic
from brain_service.errors import CorruptDataError, InvalidError, UnavailableError
from cloud_trainer.tuning.space import Settings

__all__ = ["Trial", "Trials"]

TRIALS_FILE = "trials.jsonl"
SEARCH_FILE = "search.json"


@dataclass
class Trial:
    """One trial: its settings, and the objective at each step where it was looked at (lower is better)."""

    number: int
    settings: Settings
    results: dict[int, float] = field(default_factory=dict)
    problem: str | None = None

    @property
    def step(self) -> int:
        """The last step of which the objective is known; 0 before the first."""
        return max(self.results, default=0)


class Trials:
    """The trials of a search in a folder. Not for two threads at once.

    Raises:
        InvalidError: the folder holds another search; names what differs.
        CorruptDataError: a line before the last is not what was written.
        UnavailableError: the folder cannot be written.
    """

    def __init__(self, folder: Path, search: Mapping[str, Any]) -> None:
        self._path = folder / TRIALS_FILE
        self.trials: dict[int, Trial] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _require_same(folder / SEARCH_FILE, search)
            self._read()
        except OSError as error:
            raise UnavailableError(f"{folder}: {error.strerror or error}; check permissions and space") from error

    def add(self, trial: Trial) -> None:
        """Note a trial that begins."""
        self.trials[trial.number] = trial
        self._append({"trial": trial.number, "settings": trial.settings})

    def result(self, number: int, step: int, value: float) -> None:
        """Note the objective of a trial at a step."""
        self.trials[number].results[step] = value
        self._append({"trial": number, "step": step, "value": value})

    def failed(self, number: int, problem: str) -> None:
        """Note that a trial cannot go on."""
        self.trials[number].problem = problem
        self._append({"trial": number, "problem": problem})

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UnavailableError(
                f"{self._path}: {error.strerror or error}; make room, then start again"
            ) from error

    def _read(self) -> None:
        if not self._path.exists():
            return
        *lines, torn = self._path.read_bytes().split(b"\n")
        if torn:
            # The process died in the middle of it: what it said is done again.
            write_atomic(self._path, b"".join(line + b"\n" for line in lines))
        for number, line in enumerate(lines, 1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise CorruptDataError(
                    f"{self._path}:{number}: {error}; remove the line, or search in a new folder"
                ) from error

    def _take(self, line: dict[str, Any]) -> None:
        number = line["trial"]
        if "settings" in line:
            self.trials[number] = Trial(number, line["settings"])
        elif "problem" in line:
            self.trials[number].problem = line["problem"]
        else:
            self.trials[number].results[line["step"]] = line["value"]


def _require_same(path: Path, search: Mapping[str, Any]) -> None:
    if not path.exists():
        write_atomic(path, json.dumps(search, indent=1).encode() + b"\n")
        return
    try:
        before = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptDataError(f"{path}: {error}; search in a new folder") from error
    for name in sorted(search.keys() | before.keys()):
        if search.get(name) != before.get(name):
            raise InvalidError(
                f"{path.parent} holds a search with {name} {before.get(name)!r}, not {search.get(name)!r}; search "
                "in a new folder",
                field=name,
            )
