"""Every error of `brain_service`, each with the HTTP status and the problem type it becomes.

    BrainError                  500  internal
    ├── ConfigError             500  config            the daemon refuses to start
    ├── CorruptDataError        500  corrupt-data      a checksum, hash or frame does not hold
    ├── MalformedError          400  malformed         the bytes are not JSON / msgpack
    ├── MalformedRequestError   400  malformed-request the bytes are not HTTP, or no WebSocket handshake
    ├── UnauthorizedError       401  unauthorized
    ├── ForbiddenError          403  forbidden
    ├── NotFoundError           404  not-found
    ├── ConflictError           409  conflict          a gap, a different retry, a wrong state
    ├── RequestTimeoutError     408  request-timeout   the body came too slowly
    ├── TooLargeError           413  too-large
    ├── UnsupportedMediaError   415  unsupported-media
    ├── InvalidError            422  invalid           a named field is wrong; nothing was written
    ├── TooManyError            429  too-many
    ├── HeadTooLargeError       431  head-too-large    the request's head has no end
    ├── CancelledJobError       499  cancelled         a job was asked to stop
    ├── UnavailableError        503  unavailable       full disk, no backend, shutting down
    └── DeadlineExceededError   504  deadline-exceeded the answer would have been stale

Source: RFC 9457 (Problem Details for HTTP APIs).
"""

from typing import Any, ClassVar

__all__ = [
    "BrainError",
    "CancelledJobError",
    "ConfigError",
    "ConflictError",
    "CorruptDataError",
    "DeadlineExceededError",
    "ForbiddenError",
    "HeadTooLargeError",
    "InvalidError",
    "MalformedError",
    "MalformedRequestError",
    "NotFoundError",
    "RequestTimeoutError",
    "TooLargeError",
    "TooManyError",
    "UnauthorizedError",
    "UnavailableError",
    "UnsupportedMediaError",
]


class BrainError(Exception):
    """Root of the package's errors.

    `detail` names the bad value, the valid ones and the next step. `field` is the path of the wrong
    field (`observation/state`), `members` are extra problem members such as `next_step`.
    """

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, field: str | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.members = members

    def problem(self) -> dict[str, Any]:
        """Return the RFC 9457 problem document as a JSON-ready mapping."""
        document: dict[str, Any] = {
            "type": f"urn:continuon-brain:problem:{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.field is not None:
            document["field"] = self.field
        return document | self.members


class ConfigError(BrainError):
    """A setting is wrong; the process must not start with it."""

    slug = "config"
    title = "Configuration error"


class CorruptDataError(BrainError):
    """Bytes on disk fail their checksum, hash or framing."""

    slug = "corrupt-data"
    title = "Corrupt data"


class MalformedError(BrainError):
    """The request body cannot be parsed at all."""

    status = 400
    slug = "malformed"
    title = "Malformed body"


class MalformedRequestError(BrainError):
    """What came is no HTTP request, or no WebSocket handshake."""

    status = 400
    slug = "malformed-request"
    title = "Malformed request"


class UnauthorizedError(BrainError):
    """No token, or one that is not known."""

    status = 401
    slug = "unauthorized"
    title = "Unauthorized"


class ForbiddenError(BrainError):
    """The token lacks the scope."""

    status = 403
    slug = "forbidden"
    title = "Forbidden"


class NotFoundError(BrainError):
    """No such episode, session, job, model, dataset or checkpoint."""

    status = 404
    slug = "not-found"
    title = "Not found"


class ConflictError(BrainError):
    """The request contradicts the present state: a step gap, a changed retry, an ended episode."""

    status = 409
    slug = "conflict"
    title = "Conflict"


class RequestTimeoutError(BrainError):
    """Head or body of a request took longer than `http.header_timeout_s` or `http.body_timeout_s`."""

    status = 408
    slug = "request-timeout"
    title = "Request timeout"


class TooLargeError(BrainError):
    """A body, batch or array is over its limit."""

    status = 413
    slug = "too-large"
    title = "Too large"


class UnsupportedMediaError(BrainError):
    """The body's media type is none that this path reads."""

    status = 415
    slug = "unsupported-media"
    title = "Unsupported media type"


class InvalidError(BrainError):
    """A field has the wrong name, shape, dtype or value; nothing was written."""

    status = 422
    slug = "invalid"
    title = "Invalid value"


class TooManyError(BrainError):
    """A bound on open episodes, sessions or requests is reached."""

    status = 429
    slug = "too-many"
    title = "Too many"


class HeadTooLargeError(BrainError):
    """The head of a request is over its limit."""

    status = 431
    slug = "head-too-large"
    title = "Request head too large"


class CancelledJobError(BrainError):
    """The job was asked to stop; raised at the next safe point."""

    status = 499
    slug = "cancelled"
    title = "Cancelled"


class UnavailableError(BrainError):
    """The part that would answer cannot do so now: full disk, no backend, shutting down."""

    status = 503
    slug = "unavailable"
    title = "Unavailable"


class DeadlineExceededError(BrainError):
    """The action would have come after its deadline; it was dropped and the state is unchanged."""

    status = 504
    slug = "deadline-exceeded"
    title = "Deadline exceeded"
