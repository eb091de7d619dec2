"""How far an episode is on the medium, and who wants to know."""

import asyncio
import contextlib
import threading
from collections.abc import Callable

from brain_service.errors import BrainError

__all__ = ["DurableMark", "WhenDurable"]

WhenDurable = Callable[[BrainError | None], None]
"""Called once, from any thread: with None when the step is on the medium, else with why it is not yet."""


class DurableMark:
    """The highest step index on the medium (-1: none). Thread-safe."""

    def __init__(self, through: int) -> None:
        self.through = through
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, WhenDurable]] = []
        self._watchers: dict[object, tuple[asyncio.AbstractEventLoop, Callable[[int], None]]] = {}

    def advance(self, through: int) -> None:
        """Note that steps up to `through` are on the medium, and tell whoever waits for them."""
        with self._lock:
            grew = through > self.through
            self.through = max(self.through, through)
            ready = [call for index, call in self._waiting if index <= self.through]
            self._waiting = [waiting for waiting in self._waiting if waiting[0] > self.through]
            watchers = list(self._watchers.values()) if grew else []
        for call in ready:
            call(None)
        for loop, callback in watchers:
            # A loop that has closed meanwhile listens no more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(callback, through)

    def fail(self, error: BrainError) -> None:
        """Tell everyone who waits that the medium refused."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for _, call in waiting:
            call(error)

    def when(self, step_index: int, call: WhenDurable) -> None:
        """Have `call` called when the step is on the medium or a flush failed; at once if it is there already."""
        with self._lock:
            if self.through < step_index:
                self._waiting.append((step_index, call))
                return
        call(None)

    def wait(self, step_index: int) -> None:
        """Block until the step is on the medium.

        Raises:
            UnavailableError: the medium refused.
        """
        told = threading.Event()
        found: list[BrainError | None] = []

        def tell(error: BrainError | None) -> None:
            found.append(error)
            told.set()

        self.when(step_index, tell)
        told.wait()
        if found[0] is not None:
            raise found[0]

    def watch(self, loop: asyncio.AbstractEventLoop, callback: Callable[[int], None]) -> Callable[[], None]:
        """Have `callback(through)` run on `loop` whenever it grows; the return value unsubscribes."""
        key = object()
        with self._lock:
            self._watchers[key] = (loop, callback)

        def unwatch() -> None:
            with self._lock:
                self._watchers.pop(key, None)

        return unwatch
