"""Being told to go: SIGTERM on any host stops all hosts at the same step, saved.

While the run trains, JAX's preemption service has the signal: it tells all hosts, and they agree on the step to
stop at. Before and after that, when there is nothing to agree on, the signal ends this process by an exception.
"""

import ctypes
import os
import signal
from collections.abc import Callable
from types import FrameType

from jax.experimental import multihost_utils

from brain_service.errors import CancelledJobError

__all__ = ["PreemptedError", "SignalAction", "leave_at_once", "save_first", "stop_point"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PreemptedError(CancelledJobError):
    """The process was told to go when nothing had to be saved."""


def leave_at_once() -> None:
    """From now on a signal raises PreemptedError in the main thread."""
    for number in SIGNALS:
        signal.signal(number, _leave)


class SignalAction:
    """What the process does on SIGTERM at this moment, to be put back later.

    JAX puts a handler of its own in place that Python's `signal` neither sees nor can set again.
    """

    _SIZE_BYTES = 256  # struct sigaction takes 152 on x86-64 and aarch64

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._action = ctypes.create_string_buffer(self._SIZE_BYTES)
        self._libc.sigaction(signal.SIGTERM, None, self._action)

    def put_back(self) -> None:
        """Do it again from now on."""
        self._libc.sigaction(signal.SIGTERM, self._action, None)


def save_first(service: SignalAction) -> None:
    """From now on JAX's service answers SIGTERM, and Ctrl-C is the same.

    `service` was taken right after `jax.distributed.initialize`.
    """
    service.put_back()
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
