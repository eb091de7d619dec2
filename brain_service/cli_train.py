"""`brain train` and `brain sanity-check`: training by hand, with a bar; Ctrl-C stops it without losing a step."""

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brain_service.training.loop import Hooks, TrainProgress, TrainResult

__all__ = [
    "SANITY_EXAMPLES",
    "TRAIN_EXAMPLES",
    "add_sanity_arguments",
    "add_train_arguments",
    "bar_hooks",
    "run_sanity",
    "run_train",
    "stop_on_signals",
]

Bar = AbstractContextManager[Callable[..., None]]

TRAIN_EXAMPLES = """\
examples:
  brain train --data-path ./datasets --checkpoint-dir ./checkpoints/run1 --steps 1000
  brain train --data-path ./datasets --checkpoint-dir ./checkpoints/run2 --evaluate-every 100 --patience 5
  brain train --data-path ./datasets --checkpoint-dir ./checkpoints/run3 --mode streams   # carry the state over
  tensorboard --logdir ./checkpoints

Ctrl-C saves and ends; the same command goes on from there, to the same bits. Training rests while the machine is
too hot or its supply too weak (settings `gates.*`).
"""

SANITY_EXAMPLES = """\
examples:
  brain sanity-check                                      # made-up numbers: does this machine train at all?
  brain sanity-check --rlds-dir ./datasets --max-steps 10 --batch-size 4
  brain sanity-check --obs-dim 128 --action-dim 32 --preset pi5_optimized --json
"""


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `brain train` takes; what is left out takes the trainer's default."""
    add = parser.add_argument
    add("--data-path", type=Path, required=True, help="dataset directory")
    add("--checkpoint-dir", type=Path, required=True, help="where Orbax checkpoints and logs/ go")
    add("--preset", default="development", help="size of the model (default: %(default)s)")
    add(
        "--mode",
        choices=["windows", "packed", "episodes", "streams"],
        help="what a row of a batch is: a random window (default), several short ones, a whole episode, or the "
        "next window of a stream whose state is carried over",
    )
    add("--steps", type=int, help="optimiser steps")
    add("--batch-size", type=int, help="sequences a step")
    add("--sequence-length", type=int, help="time steps a sequence")
    add("--learning-rate", type=float, help="peak learning rate")
    add("--warmup-steps", type=int, help="steps of linear warm-up")
    add("--weight-decay", type=float, help="decay of matrices a unit of learning rate")
    add("--clip-norm", type=float, help="greatest global norm of a gradient")
    add("--previous-action-dropout", type=float, help="probability that a previous action is hidden")
    add("--observation-noise", type=float, help="standard deviation, in normalised units")
    add("--evaluate-every", type=int, help="steps between two looks at the held-out loss (default: none)")
    add(
        "--patience",
        type=int,
        help="looks without a better held-out loss before the run ends (default: all steps)",
    )
    add("--checkpoint-every", type=int, help="steps between two checkpoints")
    add("--log-every", type=int, help="steps between two lines of metrics")
    add("--seed", type=int, help="of parameters, order and noise")
    add("--image", help="which image the model sees: a feature's path, auto (the only one) or none")
    add("--image-size", help="its height and width for the model, as 48x64 (default: no side above 96)")


def run_train(options: argparse.Namespace, bar: Bar) -> dict[str, Any]:
    """Train and return the result, to be printed as JSON; `bar` shows steps and loss."""
    from brain_service.hardware.gate import Gate
    from brain_service.settings import load_settings
    from brain_service.training.compile_cache import keep_compiled
    from brain_service.training.config import TrainConfig
    from brain_service.training.loop import train

    names = {field.name for field in fields(TrainConfig)}
    chosen = {name: value for name, value in vars(options).items() if name in names and value is not None}
    config = TrainConfig.from_dict(chosen | _open_ended(options))
    settings = load_settings()
    keep_compiled(settings.cache_dir)
    gate = Gate(settings.gates)
    with bar as report, stop_on_signals() as stopped:
        hooks = replace(bar_hooks(report, stopped, config.steps, "brain train"), pause_reason=gate.reason)
        done = train(options.data_path, options.checkpoint_dir, config, hooks=hooks)
    _say_how_to_go_on(done)
    return done.to_json()


def bar_hooks(
    report: Callable[..., None], stopped: Callable[[], bool], steps: int, program: str, doing: str = "training"
) -> "Hooks":
    """Return the hooks that show a run of `steps` on a bar and let a signal end it; messages name `program`."""
    from brain_service.training.loop import Hooks

    told = doing

    def on_progress(now: "TrainProgress") -> None:
        nonlocal told
        told = f"{doing}, loss {now.loss:.3f}, {now.steps_per_s:.1f} steps/s"
        report(now.step, now.steps, told)

    def on_pause(reason: str) -> None:
        report(None, steps, f"paused: {reason}" if reason else told)
        if reason:
            print(f"{program}: paused: {reason}", file=sys.stderr)

    return Hooks(on_progress=on_progress, should_stop=stopped, on_pause=on_pause)


def _open_ended(options: argparse.Namespace) -> dict[str, Any]:
    # Whole episodes are of any length unless one was given: the default of the other modes would cut them off.
    return {"sequence_length": None} if options.mode == "episodes" and options.sequence_length is None else {}


def _say_how_to_go_on(done: "TrainResult") -> None:
    if not done.completed:
        print(f"brain train: stopped at step {done.step}; the same command goes on from there", file=sys.stderr)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a request; a second one ends the program as usual."""
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _frame: object) -> None:
        asked.append(number)
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: bool(asked)
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)


def add_sanity_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `brain sanity-check` takes."""
    add = parser.add_argument
    add("--rlds-dir", type=Path, help="dataset directory (default: made-up numbers)")
    add("--obs-dim", type=int, help="numbers of an observation (default: the dataset's, or 128)")
    add("--action-dim", type=int, help="numbers of an action (default: the dataset's, or 32)")
    add("--max-steps", type=int, default=30, help="optimiser steps at most (default: %(default)s)")
    add("--batch-size", type=int, default=4, help="sequences a step (default: %(default)s)")
    add("--sequence-length", type=int, default=32, help="time steps a sequence (default: %(default)s)")
    add(
        "--image", default="none", help="which image the model sees: a feature's path, auto (the only one) or none"
    )
    add("--image-size", default="auto", help="its height and width for the model, as 48x64 (default: %(default)s)")
    add("--preset", default="development", help="size of the model (default: %(default)s)")
    add("--json", action="store_true", help="print the whole report as JSON")


def run_sanity(options: argparse.Namespace, bar: Bar) -> tuple[str, int]:
    """Check, and return what to print and the exit code: 0 passed, 1 did not."""
    from brain_service.settings import load_settings
    from brain_service.training.compile_cache import keep_compiled
    from brain_service.training.sanity import SanityOptions, sanity_check

    keep_compiled(load_settings().cache_dir)
    names = {field.name for field in fields(SanityOptions)}
    chosen = SanityOptions(**{name: value for name, value in vars(options).items() if name in names})
    with bar as report:
        found = sanity_check(chosen, on_progress=report)
    text = json.dumps(found.to_json(), indent=2) if options.json else "\n".join(found.lines())
    return text, 0 if found.passed else 1
