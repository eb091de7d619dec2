"""A fleet conversion without a runner: the five steps one after another, in any order that a runner may take."""

import random
from collections.abc import Sequence
from pathlib import Path

import msgspec

from brain_service.datasets.columns import Profile
from brain_service.datasets.places import open_place
from brain_service.datasets.statistics import FeatureStatistics, Statistics
from brain_service.datasets.versions import exclusive_work
from cloud_trainer.fleet.encode import encode_stem
from cloud_trainer.fleet.plan import make_plan
from cloud_trainer.fleet.publish import OUTCOME_FILE, Outcome, publish
from cloud_trainer.fleet.run import Run
from cloud_trainer.fleet.shard import do_task
from cloud_trainer.fleet.sources import find_folders, list_stems


def convert_here(
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    profile: Profile = "oxe",
    val_fraction: float = 0.3,
    shard_bytes: int = 2**28,
    seed: int = 0,
    twice: bool = False,
) -> Outcome:
    """Convert to the dataset `fleet`; `twice` does all that a runner may do twice twice."""
    place = open_place(output).child("fleet")
    work = place.child(".work").child("run")
    run = Run(place.folder.location, work.folder.location, "fleet", profile, val_fraction, shard_bytes)
    if not str(output).startswith("gs:"):
        with exclusive_work(Path(run.dataset)):
            _steps(inputs, run, random.Random(seed), 1 + twice)
            return msgspec.json.decode(work.folder.read(OUTCOME_FILE), type=Outcome)
    _steps(inputs, run, random.Random(seed), 1 + twice)
    outcome = msgspec.json.decode(work.folder.read(OUTCOME_FILE), type=Outcome)
    work.remove()
    return outcome


def _steps(inputs: Sequence[str | Path], run: Run, chance: random.Random, times: int) -> None:
    stems = [stem for folder in find_folders(map(str, inputs)) for stem in list_stems(folder)]
    chance.shuffle(stems)
    found = [[encode_stem(stem, run) for _ in range(times)][-1] for stem in stems]
    tasks = [list(make_plan(found, run)) for _ in range(times)][-1]
    chance.shuffle(tasks)
    publish([[do_task(task, run) for _ in range(times)][-1] for task in tasks], run)


def figures(statistics: Statistics) -> dict[str, FeatureStatistics]:
    """All figures by name."""
    return {
        **{f"observation/{path}": its for path, its in statistics.observation.items()},
        **{f"action/{path}": its for path, its in statistics.action.items()},
        "reward": statistics.reward,
    }
