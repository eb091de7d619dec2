"""`brain evaluate`: hold a checkpoint against the held-out episodes, another model and a simulator."""

import argparse
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_service.errors import InvalidError

if TYPE_CHECKING:
    from brain_service.training.evaluation import Simulator, Subject

__all__ = ["add_evaluate_command"]

EXAMPLES = """\
examples:
  brain evaluate --data-path ./datasets --checkpoint-dir ./checkpoints/run1
  brain evaluate --data-path ./datasets --checkpoint-dir ./checkpoints/run1 --report-dir ./report
  brain evaluate --data-path ./datasets --checkpoint-dir ./checkpoints/run2 --against ./brain/models/active
  brain evaluate --data-path ./datasets --checkpoint-dir ./checkpoints/run1 --simulator my_robot:simulate

A simulator is a function simulate(policy, seed) -> (success, total_reward, steps); it calls policy(observation,
reward) at every step of one episode, with flat vectors in the dataset's units.
"""


def add_evaluate_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `evaluate` to the parser of `brain`."""
    summary = "Hold a checkpoint against the held-out episodes."
    added = commands.add_parser(
        "evaluate",
        help=summary,
        description=f"{summary} Exit code 1: it is not to replace the model named by --against.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(run=_evaluate)
    added.add_argument("--data-path", type=Path, required=True, help="dataset directory")
    added.add_argument("--checkpoint-dir", type=Path, required=True, help="checkpoints of one run")
    added.add_argument("--step", type=int, help="of the run (default: the newest)")
    added.add_argument("--split", choices=["val", "train"], default="val")
    added.add_argument("--report-dir", type=Path, help="also write evaluation.json and evaluation.html there")
    added.add_argument("--against", type=Path, help="a bundle or another run: say whether this one may replace it")
    added.add_argument("--simulator", metavar="MODULE:FUNCTION", help="also drive a simulator")
    added.add_argument("--episodes", type=int, default=20, help="simulated episodes (default: %(default)s)")


def _evaluate(options: argparse.Namespace) -> int:
    from brain_service.datasets.dataset import open_dataset
    from brain_service.training.checkpointing import load_checkpoint
    from brain_service.training.evaluation import (
        Subject,
        drive_closed_loop,
        evaluate_subject,
        judge_promotion,
        write_report,
    )

    simulate = _simulator(options.simulator, options.episodes)
    loaded, dataset = load_checkpoint(options.checkpoint_dir, options.step), open_dataset(options.data_path)
    subject = Subject.of_checkpoint(loaded, f"checkpoint {options.checkpoint_dir.name}, step {loaded.step}")
    found = evaluate_subject(subject, dataset, split=options.split, step=loaded.step)
    if simulate is not None:
        found = replace(found, closed_loop=drive_closed_loop(subject, simulate, options.episodes))
    if options.against is not None:
        promotion = judge_promotion(subject, _other(options.against), dataset, options.split)
        found = replace(found, promotion=promotion)
    if options.report_dir is not None:
        write_report(options.report_dir, found)
    sys.stdout.write(json.dumps(found.to_json(), indent=2) + "\n")
    return int(found.promotion is not None and not found.promotion.promoted)


def _other(path: Path) -> "Subject":
    """Return the model of a bundle, or of the newest checkpoint of a run.

    Raises:
        BrainError: there is neither at the path, or it is damaged.
    """
    from brain_service.export.bundle import MANIFEST, Bundle
    from brain_service.export.subject import bundle_subject
    from brain_service.training.checkpointing import load_checkpoint
    from brain_service.training.evaluation import Subject

    if (path / MANIFEST).is_file():
        return bundle_subject(Bundle.open(path.resolve()), None)
    return Subject.of_checkpoint(load_checkpoint(path), f"checkpoint {path.name}")


def _simulator(reference: str | None, episodes: int) -> "Simulator | None":
    """Import `module:function`, also of a module in the current directory, as `python -m` would.

    Raises:
        InvalidError: there is no such function, or the number of episodes is not positive.
    """
    if reference is None:
        return None
    if episodes < 1:
        raise InvalidError(f"--episodes is {episodes}; use a positive number", field="episodes")
    module, _, name = reference.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidError(
            f"--simulator {reference!r}: {error}; give MODULE:FUNCTION of a function that can be imported",
            field="simulator",
        ) from error
    simulate: Simulator = found
    return simulate
