"""What Google's services answer, and what keeps them from answering, as errors of ours.

UnavailableError   no answer, 408, 429, 5xx: try again, after `retry_after_s` where the service says so
UnauthorizedError  401, a token that is refused, a clock that is off
ForbiddenError     403: the right is missing, the project is wrong, billing is off
TooManyError       403 of a quota
NotFoundError      404, 410
ConflictError      409, 412
InvalidError       any other 4xx
"""

import contextlib
import re
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

from brain_service.errors import (
    BrainError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    TooManyError,
    UnauthorizedError,
    UnavailableError,
)

__all__ = ["answer_error", "reaching", "retry_after_s"]

_SHOWN = 300
# Google refuses a token request that is dated more than 5 minutes off.
_SKEW_S = 300.0
_SKEW_SIGNS = re.compile(r"invalid jwt|\biat\b|reasonable timeframe|used too early", re.IGNORECASE)
_RATE = ("rateLimitExceeded", "userRateLimitExceeded")
_QUOTA = ("quotaExceeded", "dailyLimitExceeded", "limitExceeded")
_LOGIN = "run 'gcloud auth application-default login' or renew the key in cloud.credentials_file"
_CLOCK = "set this machine's clock ('timedatectl set-ntp true'), then try again"


@contextlib.contextmanager
def reaching(place: str) -> Iterator[None]:
    """Turn what a call of an authorized session raises into an error of ours; `place` stands for its aim.

    Raises:
        UnauthorizedError: no token is to be had: the key is expired, revoked or unknown, or the clock is off.
        UnavailableError: no connection, or it broke.
    """
    import requests
    from google.auth.exceptions import GoogleAuthError, RefreshError, TimeoutError, TransportError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (TransportError, TimeoutError) as error:
        raise UnavailableError(f"{place}: no token: {_first(error)}; check the network") from error
    except GoogleAuthError as error:
        if isinstance(error, RefreshError) and error.retryable:
            raise UnavailableError(f"{place}: Google gives no token now: {_first(error)}") from error
        raise _refused(place, _first(error)) from error
    except (requests.RequestException, HTTPError, OSError) as error:
        raise UnavailableError(f"{place}: {type(error).__name__}: {error}; check the network") from error


def _first(error: Exception) -> str:
    return str(error.args[0] if error.args else error)[:_SHOWN]


def _refused(place: str, message: str) -> UnauthorizedError:
    if _SKEW_SIGNS.search(message):
        return UnauthorizedError(f"{place}: Google refuses the token's date: {message}; {_CLOCK}")
    return UnauthorizedError(f"{place}: Google gives no token: {message}; {_LOGIN}")


def answer_error(answer: Any, place: str) -> BrainError:
    """Return the error that an answer of status 4xx or 5xx is; `answer` is a requests.Response, read or readable.

    The message ends in what to change. `retry_after_s` is a member where the service named a time.
    """
    code, (message, reason) = int(answer.status_code), _said(answer)
    said = f"{place}: {code} {message}".rstrip()
    if code in (408, 429) or code >= 500 or (code == 403 and reason in _RATE):
        wait_s = retry_after_s(answer)
        return UnavailableError(said) if wait_s is None else UnavailableError(said, retry_after_s=wait_s)
    if code == 401:
        skew_s = _skew_s(answer)
        if abs(skew_s) > _SKEW_S or _SKEW_SIGNS.search(message):
            off = f" (it is {abs(skew_s):.0f} s {'behind' if skew_s > 0 else 'ahead'})" if skew_s else ""
            return UnauthorizedError(f"{said}; the clock is off{off}: {_CLOCK}")
        return UnauthorizedError(f"{said}; {_LOGIN}")
    if code == 403:
        if reason in _QUOTA:
            return TooManyError(f"{said}; a quota of the project is used up: raise it in the Google Cloud console")
        return ForbiddenError(
            f"{said}; give the robot's account the right (deploy/ lists them), and check that cloud.project and "
            "cloud.bucket are the ones meant and that the project has billing"
        )
    if code in (404, 410):
        return NotFoundError(f"{said}; check cloud.bucket and the name")
    if code in (409, 412):
        return ConflictError(said)
    return InvalidError(said)


def retry_after_s(answer: Any) -> float | None:
    """Return the wait in seconds that an answer asks for (RFC 9110, 10.2.3), None where it names none."""
    text = str(answer.headers.get("Retry-After", "")).strip()
    if text.isdigit():
        return float(text)
    then_s = _date_s(text)
    return None if then_s is None else max(0.0, then_s - time.time())


def _skew_s(answer: Any) -> float:
    """Return by how many seconds the answer's clock is ahead of this machine's; 0 where it does not say."""
    then_s = _date_s(str(answer.headers.get("Date", "")))
    return 0.0 if then_s is None else then_s - time.time()


def _date_s(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError):
        return None


def _said(answer: Any) -> tuple[str, str]:
    """Return the message and the reason of Google's error document, or the beginning of whatever came."""
    try:
        error = answer.json()["error"]
        reasons = [str(item.get("reason", "")) for item in error.get("errors", ())]
        return str(error.get("message", ""))[:_SHOWN], reasons[0] if reasons else str(error.get("status", ""))
    except (ValueError, TypeError, KeyError, AttributeError):
        with contextlib.suppress(Exception):
            return " ".join(str(answer.text).split())[:_SHOWN], ""
        return "", ""
