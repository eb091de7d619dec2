"""One cell of the table: a model, a task and a seed, trained and judged, kept as a JSON file."""

import hashlib
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from brain_service.durable import write_atomic
from brain_service.model.config import CoreModelConfig
from brain_service.training.config import TrainConfig
from tests.bench.learning.drive import drive, drive_expert, drive_random
from tests.bench.learning.fit import fit
from tests.bench.learning.models import REVISIONS, SIZES, make_policy
from tests.bench.learning.tasks import TASKS, Demonstrations, Task

__all__ = ["Cell", "read_cell", "run_cell"]

PACKAGES = ("jax", "numpy", "popgym", "gymnasium", "metaworld", "mujoco")
# Of the training settings, those that play a part here: whole episodes are the sequences.
TRAINING = (
    *("steps", "batch_size", "learning_rate", "warmup_steps", "weight_decay", "clip_norm"),
    *("previous_action_dropout", "observation_noise", "seed"),
)
DEFAULTS: dict[str, Any] = {"learning_rate": 2e-3, "warmup_steps": 50, "batch_size": 16}


@dataclass(frozen=True)
class Cell:
    """What is run; `steps_scale` shortens the training for the daily subset."""

    task: str
    model: str
    seed: int
    steps_scale: float = 1.0

    @property
    def name(self) -> str:
        """Return the name of its file, without the extension."""
        return f"{self.task}.{self.model}.{self.seed}"

    def settings(self) -> dict[str, Any]:
        """Return everything that decides the result, as a JSON-ready mapping."""
        task, config, plain = TASKS[self.task], self.train_config(), CoreModelConfig().to_dict()
        model = CoreModelConfig.development(**SIZES).to_dict()
        return {
            "task": self.task,
            "model": self.model,
            "seed": self.seed,
            "revision": REVISIONS[self.model],
            **task.settings(),
            # What is not the default, so that a setting which comes later leaves the cells as they are.
            "config": {name: value for name, value in model.items() if value != plain[name]},
            "train": {name: getattr(config, name) for name in TRAINING},
        }

    @property
    def digest(self) -> str:
        """Return a hash of the settings: two results with one digest were asked for the same thing."""
        return _digest(self.settings())

    def train_config(self) -> TrainConfig:
        """Return the project's training settings for this cell."""
        values = {**DEFAULTS, **TASKS[self.task].train, "seed": self.seed}
        steps = max(1, round(values.pop("steps") * self.steps_scale))
        return TrainConfig(**values, steps=steps)


def read_cell(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """Return the result of the cell if it was run with these very settings."""
    try:
        document: dict[str, Any] = json.loads((folder / f"{cell.name}.json").read_bytes())
    except FileNotFoundError:
        return None
    # Compared as JSON, which has no tuples.
    return document if _digest(document["settings"]) == cell.digest else None


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def run_cell(folder: Path, cell: Cell) -> dict[str, Any]:
    """Run the cell and write `<folder>/<name>.json`."""
    task = TASKS[cell.task]
    begun_s = time.monotonic()
    demonstrations = task.view(_demonstrations(folder, task, cell.seed))
    collected_s = time.monotonic()
    policy = make_policy(
        cell.model,
        demonstrations.observation.shape[2],
        demonstrations.action.shape[2],
        **({"action_kind": "discrete", "action_choices": task.choices} if task.choices else {}),
    )
    fitted = fit(task, policy, demonstrations, cell.train_config())
    trained_s = time.monotonic()
    scores = drive(task, policy, fitted, cell.seed)
    document = {
        "settings": cell.settings(),
        "parameters": policy.parameters,
        "scores": scores,
        "references": _references(folder, task, cell.seed),
        "curve": fitted.curve,
        "digest": cell.digest,
        "seconds": {
            "demonstrations": collected_s - begun_s,
            "compile": fitted.compile_s,
            "train": fitted.train_s,
            "drive": time.monotonic() - trained_s,
        },
        "versions": {name: version(name) for name in PACKAGES},
        "machine": platform.machine(),
    }
    write_atomic(folder / f"{cell.name}.json", json.dumps(document, indent=1).encode())
    return document


def _demonstrations(folder: Path, task: Task, seed: int) -> Demonstrations:
    """Return the seed's demonstrations, collected once for all models."""
    path = folder / "demonstrations" / f"{_digest(task.recipe())}.{seed}.npz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = task.collect(seed, task.demonstrations)
        scratch = path.with_suffix(f".{time.monotonic_ns()}.tmp.npz")
        np.savez_compressed(scratch, **found._asdict())
        scratch.replace(path)
    with np.load(path) as stored:
        return Demonstrations(**{name: stored[name] for name in Demonstrations._fields})


def _references(folder: Path, task: Task, seed: int) -> Mapping[str, list[float]]:
    """Return the scores of the expert and of a random policy on the judged episodes, found once for all models."""
    path = folder / "references" / f"{_digest(task.recipe())}.{seed}.{task.episodes}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {"expert": drive_expert(task, seed), "random": drive_random(task, seed)}
        write_atomic(path, json.dumps(found).encode())
    document: dict[str, list[float]] = json.loads(path.read_bytes())
    return document
