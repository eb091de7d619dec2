"""Waiting for threads while whoever waits for us may change his mind."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

__all__ = ["results"]

T = TypeVar("T")
# How often a conversion that waits looks whether it was cancelled.
_TICK_S = 0.2


def results(futures: "Sequence[Future[T]]", tick: Callable[[], None] | None = None) -> Iterator[T]:
    """Yield the results in order; `tick` is called five times a second meanwhile, and may raise to stop.

    What was not begun by then is cancelled. Each answer is let go of once it is yielded.
    """
    waiting = list(reversed(futures))
    try:
        while waiting:
            future = waiting.pop()
            while tick is not None and not wait([future], timeout=_TICK_S).done:
                tick()
            yield future.result()
    finally:
        for future in waiting:
            future.cancel()
