"""Every error of the client: one root, and below it what went wrong on our side, on the way, and at the daemon.

ClientError
├── BufferFullError     the offline buffer is full; the step was not taken
├── EncodeError         a value that has no msgpack form; the step was not taken
├── EndedError          the episode has ended, here or at the daemon, and takes no more steps
├── LostStepsError      the daemon no longer has steps that this client no longer has either
├── SpoolError          the offline buffer on disk is in use, damaged or cannot be written
├── TimedOutError       what was waited for did not happen in time (also a `TimeoutError`)
├── UnreachableError    no answer: refused, cut off, or silent
└── ProblemError        the daemon answered with a problem document (RFC 9457)
    ├── RejectedError   400, 413, 415, 422: the body is wrong; `field` names where
    ├── AuthError       401, 403
    ├── NotFoundError   404
    ├── ConflictError   409: a gap, another body under a stored index, a wrong state
    ├── BusyError       429, 503: later; `retry_after_s` says when
    └── StaleError      504: the action would have come after its deadline; it was dropped
"""

from collections.abc import Mapping
from typing import Any

import httpx
import msgspec

__all__ = [
    "AuthError",
    "BufferFullError",
    "BusyError",
    "ClientError",
    "ConflictError",
    "EncodeError",
    "EndedError",
    "LostStepsError",
    "NotFoundError",
    "ProblemError",
    "RejectedError",
    "SpoolError",
    "StaleError",
    "TimedOutError",
    "UnreachableError",
    "is_passing",
    "problem_error",
    "response_error",
]


class ClientError(Exception):
    """Root of the client's errors. `detail` says what happened and what to do next."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BufferFullError(ClientError):
    """The offline buffer is full; the step was not taken, and `log_step` may be called with it again."""


class EncodeError(ClientError):
    """A value has no msgpack form; the step was not taken."""


class EndedError(ClientError):
    """The episode has ended and takes no more steps."""


class LostStepsError(ClientError):
    """Steps are gone that the daemon called durable, or that this client was told not to keep."""


class SpoolError(ClientError):
    """The offline buffer on disk is in use by another process, damaged or cannot be written."""


class TimedOutError(ClientError, TimeoutError):
    """What was waited for did not happen in time; it goes on in the background."""


class UnreachableError(ClientError):
    """The daemon gave no answer: connection refused, cut off, or silent for the timeout."""


class ProblemError(ClientError):
    """The daemon answered with a problem document, kept whole in `problem`.

    `status` is the HTTP status, `field` the path of the wrong field (`observation/state`), `next_step_index` the
    step that the episode expects, `next_step` the one that the session expects, `retry_after_s` a wait in seconds;
    each None where the document has none.
    """

    def __init__(self, problem: Mapping[str, Any]) -> None:
        self.problem = dict(problem)
        self.status: int = int(problem["status"])
        self.title = str(problem.get("title", ""))
        self.field: str | None = problem.get("field")
        self.next_step_index: int | None = problem.get("next_step_index")
        self.next_step: int | None = problem.get("next_step")
        self.retry_after_s: float | None = problem.get("retry_after_s")
        super().__init__(f"{self.status} {self.title}: {problem.get('detail', 'no detail')}")


class RejectedError(ProblemError):
    """400, 413, 415 or 422: the body is wrong, and sending it again does not help."""


class AuthError(ProblemError):
    """401 or 403: no token, an unknown one, or one without the scope."""


class NotFoundError(ProblemError):
    """404: no such episode, session or path."""


class ConflictError(ProblemError):
    """409: a gap, another body under a stored index, a wrong state."""


class BusyError(ProblemError):
    """429 or 503: a bound is reached, or a part cannot answer now."""


class StaleError(ProblemError):
    """504: the action would have come after its deadline. It was dropped; `next_step` is the step to ask for."""


_BY_STATUS: dict[int, type[ProblemError]] = {
    400: RejectedError,
    401: AuthError,
    403: AuthError,
    404: NotFoundError,
    409: ConflictError,
    413: RejectedError,
    415: RejectedError,
    422: RejectedError,
    429: BusyError,
    503: BusyError,
    504: StaleError,
}


def problem_error(problem: Mapping[str, Any]) -> ProblemError:
    """Return the error of a problem document, by its `status`."""
    return _BY_STATUS.get(int(problem["status"]), ProblemError)(problem)


def response_error(response: httpx.Response) -> ProblemError:
    """Return the error of an answer of 400 or above; one that is no problem document becomes one."""
    problem: dict[str, Any] = {}
    try:
        document = msgspec.json.decode(response.content)
        problem = document if isinstance(document, dict) else {}
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = {"detail": response.text[:200]}
    problem = {"title": response.reason_phrase} | problem | {"status": response.status_code}
    waiting = response.headers.get("retry-after", "")
    if waiting.isdigit():
        problem.setdefault("retry_after_s", float(waiting))
    return problem_error(problem)


def is_passing(error: ClientError) -> bool:
    """Tell whether the same request may succeed later: no answer, 408, 429 or 5xx."""
    return isinstance(error, UnreachableError) or (
        isinstance(error, ProblemError) and (error.status in (408, 429) or error.status >= 500)
    )
