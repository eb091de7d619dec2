"""Being told to go: SIGTERM on any host stops all hosts at the same step, saved.

While the run trains, JAX's preemption service has the signal: it tells all hosts, and they agree on the step to
stop at. Before and after that, when there is nothing to agree on, the signal ends this process by an exception.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType

from jax.experimental import multihost_utils

from brain_service.errors import CancelledJobError

__all__ = ["PreemptedError", "leave_at_once", "save_first", "stop_point"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PreemptedError(CancelledJobError):
    """The process was told to go when nothing had to be saved."""


def leave_at_once() -> None:
    """From now on a signal raises PreemptedError in the main thread."""
    for number in SIGNALS:
        signal.signal(number, _leave)


def save_first() -> None:
    """From now on JAX's service answers SIGTERM, and Ctrl-C is the same; after `jax.distributed.initialize`.

    JAX has put its own handler in place by then, unseen by Python.
    """
    signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def stop_point() -> Callable[[int], bool]:
    """Return what tells, asked before every step, whether all hosts stop before it.

    Once true it stays so.
    """
    reached = False

    def ask(step: int) -> bool:
        nonlocal reached
        reached = reached or multihost_utils.reached_preemption_sync_point(step)
        return reached

    return ask


def _leave(number: int, _frame: FrameType | None) -> None:
    raise PreemptedError(f"told to go by {signal.Signals(number).name}; the same command goes on")
