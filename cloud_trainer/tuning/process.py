"""One trial as a process: told to go once it is past a step, it saves, and goes on from there when it is wanted.

The schedule of a trial is that of its full length from the start, so that what is compared on a rung is the
beginning of what would be trained, and no step is made twice.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from brain_service.cloud.run_status import EXIT_PREEMPTED
from brain_service.processes import die_with_parent
from brain_service.training.metrics import read_metrics

__all__ = ["METRIC", "TrialFailedError", "advance", "objective_at"]

METRIC = "held_out_loss"
_LOOK_S = 0.05
_GRACE_S = 120.0


class TrialFailedError(Exception):
    """A trial ended without its objective; the search goes on without it."""


def objective_at(output: Path, step: int) -> float | None:
    """Return the held-out loss of a trial at a step, None where it was not looked at yet."""
    found = [line for line in read_metrics(output / "checkpoints") if line.get("step") == step and METRIC in line]
    return float(found[-1][METRIC]) if found else None


def advance(command: Sequence[str], output: Path, step: int, last: int, stop: Callable[[], bool]) -> float | None:
    """Run a trial until it is past `step`, and return its objective there; None where `stop` said so before.

    Unless that is the last step its process is then told to go, and killed after `_GRACE_S` seconds.

    Raises:
        TrialFailedError: the process ended without it.
    """
    value = objective_at(output, step)
    if value is not None:
        return value
    output.mkdir(parents=True, exist_ok=True)
    with (output / "output.log").open("ab") as log:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
        try:
            # The last one ends by itself, and leaves a bundle.
            while process.poll() is None:
                if stop() or (step < last and objective_at(output, step) is not None):
                    _end(process)
                    break
                time.sleep(_LOOK_S)
        finally:
            process.kill()
            process.wait()
    value = objective_at(output, step)
    finished = step < last or process.returncode == 0
    if value is not None and finished and process.returncode in (0, EXIT_PREEMPTED):
        return value
    if stop():
        return None
    raise TrialFailedError(_why(output, process.returncode))


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _why(output: Path, code: int) -> str:
    lines = (output / "output.log").read_text(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    return f"exit code {code}: {last[:500]}"
