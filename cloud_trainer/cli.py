"""`cloud-trainer`: train, or with a command plan, tune, convert and merge what a training needs.

Without a command it trains; for example

  python -m cloud_trainer --data-path gs://bucket/datasets --output-dir gs://bucket/runs/1 \\
      --batch-size 256 --num-steps 10000 --learning-rate 1e-4
"""

import importlib
import sys
from collections.abc import Callable

from brain_service.errors import BrainError, ConfigError
from cloud_trainer.exits import exit_code

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "train": "train on a dataset and leave checkpoints and a bundle in the output directory (the default)",
    "plan": "compile the train step for a TPU topology and tell memory, time and cost",
    "tune": "search for good settings",
    "convert": "convert recorded episodes at fleet scale",
    "merge": "make one dataset of several robots' datasets",
    "pipeline": "write the Vertex pipeline of upload, train, evaluate and register",
}
"""Each command is `main(arguments) -> exit code` of the module of its name, which is loaded only then."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 78 refused as it is, 75 told to go and saved, 2 failed.

    An error is one line on standard error.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if given in (["-h"], ["--help"]):
        print(f"{__doc__.strip()}\n\n" + "\n".join(f"  {name:<10}{what}" for name, what in COMMANDS.items()))
        print("\nEach of them has its own --help.")
        return 0
    named = bool(given) and given[0] in COMMANDS
    try:
        command = _command(given[0] if named else "train")
        return command(given[1:] if named else given)
    except BrainError as error:
        print(f"cloud-trainer: {error.detail}", file=sys.stderr)
        return exit_code(error)


def _command(name: str) -> Callable[[list[str]], int]:
    module = f"cloud_trainer.{name}"
    try:
        found: Callable[[list[str]], int] = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        if error.name != module:
            raise ConfigError(
                f"{name}: the package {error.name} is missing: pip install 'continuon-brain[tpu]'"
            ) from error
        raise ConfigError(f"{name} is not part of this installation") from error
    return found
