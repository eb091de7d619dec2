"""What runs in a trial's container: a training with the trial's settings, whose objective is told as it comes.

    python -m cloud_trainer tune trial --data-path ... --output-dir gs://... --learning_rate=0.001 --batch_size=64

Names with an underscore are settings, as Vertex AI passes them; all else goes to the training as it is. Each trial
has a folder of its own below the output directory, named by `$CLOUD_ML_TRIAL_ID`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial

from brain_service.datasets.storage import open_folder
from brain_service.errors import BrainError, InvalidError, NotFoundError
from brain_service.processes import die_with_parent
from brain_service.training.config import TrainConfig
from cloud_trainer.environment import trial_id
from cloud_trainer.hypertune import report
from cloud_trainer.tuning.process import METRIC
from cloud_trainer.tuning.space import Settings, to_arguments

__all__ = ["main", "translate"]

PROGRAM = (sys.executable, "-m", "cloud_trainer")
_LOOK_S = 2.0


def main(arguments: list[str], program: Sequence[str] = PROGRAM, look_s: float = _LOOK_S) -> int:
    """Run the training and return its exit code.

    Raises:
        InvalidError: no output directory is given, or a setting has no value of its kind.
        UnavailableError: the metric file cannot be written.
    """
    command, output = translate(arguments, trial_id())
    told: set[int] = set()
    dying = partial(die_with_parent, os.getpid())
    with subprocess.Popen([*program, *command], preexec_fn=dying) as process, _passed_on(process):
        while process.poll() is None:
            time.sleep(look_s)
            _tell(output, told)
    _tell(output, told)
    return process.returncode


def translate(arguments: Sequence[str], trial: str) -> tuple[list[str], str]:
    """Return the training's options for those of a container, and the trial's own output directory.

    Raises:
        InvalidError: no output directory is given, or a setting has no value of its kind.
    """
    kept: list[str] = []
    settings: Settings = {}
    kinds = {field.name: field.type for field in fields(TrainConfig)}
    for argument in arguments:
        name, equals, text = argument.removeprefix("--").partition("=")
        if equals and argument.startswith("--") and name in kinds:
            settings[name] = _value(name, text, str(kinds[name]))
        else:
            kept.append(argument)
    if "--output-dir" not in kept[:-1]:
        raise InvalidError("a trial needs --output-dir", field="output_dir")
    place = kept.index("--output-dir") + 1
    kept[place] = f"{kept[place].rstrip('/')}/trial-{trial}"
    return kept + to_arguments(settings), kept[place]


def _value(name: str, text: str, kind: str) -> float | int | str:
    if "int" not in kind and "float" not in kind:
        return text
    try:
        value = float(text)
    except ValueError as error:
        raise InvalidError(f"--{name}={text}: no number", field=name) from error
    # Vertex AI writes whole numbers of a discrete choice as 16.0.
    return int(value) if "int" in kind else value


def _tell(output: str, told: set[int]) -> None:
    """Report what the curves hold by now; a bucket that does not answer is asked again."""
    try:
        data = open_folder(output).child("checkpoints").child("logs").read("metrics.jsonl")
    except NotFoundError:
        return
    except BrainError:
        return
    for line in data.splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        step = values.get("step")
        if METRIC in values and step not in told:
            told.add(step)
            report(METRIC, values[METRIC], step)


@contextmanager
def _passed_on(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Pass a signal to go on to the training, which saves."""

    def pass_on(number: int, _: object) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
