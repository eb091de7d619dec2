"""How long a call is repeated while a service does not answer, and what is raised when that was long enough.

Waits have full jitter (anything between nothing and a bound that doubles), so that a fleet that lost its network
together does not come back together. A wait that the service names itself (Retry-After) is kept.
Source: AWS Architecture Blog, "Exponential Backoff And Jitter"; https://cloud.google.com/storage/docs/retry-strategy.
"""

import fcntl
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from brain_service.errors import CancelledJobError, UnavailableError

__all__ = ["OfflineError", "Patience", "RetryPolicy", "ShouldStop", "check_stop", "park_s", "wait_for_lock"]

T = TypeVar("T")
ShouldStop = Callable[[], bool]
_SLICE_S = 0.1
_LOCK_LOOK_S = 0.2
_PARK_S = (30.0, 3600.0)


class OfflineError(UnavailableError):
    """The network or the service is away for longer than a call waits, or it is quiet hours: come again.

    `retry_after_s` says when. What was done so far is kept and not done again.
    """

    def __init__(self, detail: str, *, retry_after_s: float, **members: Any) -> None:
        super().__init__(detail, retry_after_s=retry_after_s, **members)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """At most `tries` calls in a row without progress; the n-th wait is below `base_s * 2**n` and `cap_s`.

    A service that asks for a wait longer than `cap_s` ends the tries at once.
    """

    tries: int = 6
    base_s: float = 0.5
    cap_s: float = 30.0


class Patience:
    """The tries of one piece of work. Only UnavailableError is worth another; every other error passes through."""

    def __init__(
        self,
        policy: RetryPolicy,
        should_stop: ShouldStop | None = None,
        sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.failures = 0
        """In a row."""
        self.waits = 0
        """In all."""
        self._policy = policy
        self._should_stop = should_stop
        self._sleep = sleep
        # Jitter is no secret.
        self._rng = rng or random.Random()  # noqa: S311

    def call(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, calling it again while the service does not answer.

        Raises:
            OfflineError: all tries failed.
            CancelledJobError: it was asked to stop.
        """
        while True:
            try:
                done = work()
            except UnavailableError as error:
                self.wait(error)
            else:
                self.reset()
                return done

    def reset(self) -> None:
        """Note progress: the tries begin anew."""
        self.failures = 0

    def wait(self, error: UnavailableError) -> None:
        """Wait before the next try.

        Raises:
            OfflineError: there is none left, or the service wants to be left alone for longer.
            CancelledJobError: it was asked to stop.
        """
        self.failures += 1
        self.waits += 1
        asked_s = float(error.members.get("retry_after_s", 0.0))
        if isinstance(error, OfflineError):
            raise error
        if self.failures >= self._policy.tries or asked_s > self._policy.cap_s:
            tried = f"tried {self.failures} times" if self.failures > 1 else "the service asks to wait"
            raise OfflineError(f"{error.detail} ({tried})", retry_after_s=max(asked_s, _PARK_S[0])) from error
        bound_s = min(self._policy.cap_s, self._policy.base_s * 2.0 ** (self.failures - 1))
        self.pause(max(asked_s, self._rng.uniform(0.0, bound_s)))

    def pause(self, wait_s: float) -> None:
        """Sleep, in slices, so that a request to stop is seen soon.

        Raises:
            CancelledJobError: it was asked to stop.
        """
        while wait_s > 0:
            check_stop(self._should_stop)
            self._sleep(min(wait_s, _SLICE_S))
            wait_s -= _SLICE_S
        check_stop(self._should_stop)


def check_stop(should_stop: ShouldStop | None) -> None:
    """End the work here if it was asked to stop; what was sent or fetched is kept.

    Raises:
        CancelledJobError: it was.
    """
    if should_stop is not None and should_stop():
        raise CancelledJobError(
            "asked to stop; what was transferred is kept, and the same call goes on from there"
        )


def park_s(attempts: int, rng: random.Random | None = None) -> float:
    """Return for how many seconds to leave work alone after so many attempts: 30 at first, 3600 at most."""
    first_s, most_s = _PARK_S
    bound_s = min(most_s, first_s * 2.0 ** min(attempts, 16))
    return (rng or random.Random()).uniform(bound_s / 2, bound_s)  # noqa: S311


def wait_for_lock(file: IO[bytes], should_stop: ShouldStop | None) -> None:
    """Lock an open file for this process (`flock`); a killed holder's is free at once.

    Raises:
        CancelledJobError: it was asked to stop while it waited.
    """
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            check_stop(should_stop)
            time.sleep(_LOCK_LOOK_S)
        else:
            return
