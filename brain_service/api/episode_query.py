"""The query of `GET /episodes`: filters by what a header says, times as nanoseconds or RFC 3339."""

import difflib
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import Query, Request

from brain_service.episodes.index import Filters
from brain_service.errors import InvalidError

__all__ = ["filters_of", "parse_time_ns"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,18})")
_RFC_3339 = re.compile(
    r"(?P<second>[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2})"
    r"(\.(?P<fraction>[0-9]+))?(?P<offset>[Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_TIME_SCHEMA = {"anyOf": [{"type": "integer"}, {"type": "string", "format": "date-time"}]}
_KNOWN = (
    "limit",
    "cursor",
    "tag",
    "robot_id",
    "environment_id",
    "control_role",
    "xr_mode",
    "state",
    "created_after",
    "created_before",
)

State = Literal["open", "terminated", "truncated", "recovered"]
Time = Annotated[
    str | None, Query(description="int64 nanoseconds since the epoch, or RFC 3339", json_schema_extra=_TIME_SCHEMA)
]


def filters_of(
    request: Request,
    tag: Annotated[list[str], Query(description="repeat it: an episode must have all")] = [],  # noqa: B006
    robot_id: str | None = None,
    environment_id: str | None = None,
    control_role: Literal["expert", "intervention", "policy"] | None = None,
    xr_mode: str | None = None,
    state: State | None = None,
    created_after: Time = None,
    created_before: Time = None,
) -> Filters:
    """Return the filters of a request; a dependency of the list route.

    Raises:
        InvalidError: an unknown name (with the nearest known one), or a time that is none.
    """
    _require_known(request.query_params.keys())
    return Filters(
        tags=tuple(dict.fromkeys(tag)),
        robot_id=robot_id,
        environment_id=environment_id,
        control_role=control_role,
        xr_mode=xr_mode,
        state=state,
        created_after=None if created_after is None else parse_time_ns(created_after, "created_after"),
        created_before=None if created_before is None else parse_time_ns(created_before, "created_before"),
    )


def parse_time_ns(text: str, field: str) -> int:
    """Return nanoseconds since the epoch of an integer of them, or of an RFC 3339 time with its offset.

    Raises:
        InvalidError: it is neither; `field` names it.
    """
    if _INTEGER.fullmatch(text):
        return int(text)
    # A `+` in a query that was not escaped arrives as a space.
    parts = _RFC_3339.fullmatch(re.sub(r" ([0-9]{2}:[0-9]{2})$", r"+\1", text))
    if parts is None:
        raise _no_time(text, field)
    try:
        moment = datetime.fromisoformat(f"{parts['second']}{parts['offset'].upper()}")
    except ValueError as error:
        raise _no_time(text, field) from error
    fraction_ns = int((parts["fraction"] or "").ljust(9, "0")[:9])
    return (moment - _EPOCH) // timedelta(seconds=1) * 10**9 + fraction_ns


def _no_time(text: str, field: str) -> InvalidError:
    return InvalidError(
        f"{field} {text[:64]!r} is neither int64 nanoseconds nor RFC 3339 with an offset, "
        "such as 2026-11-22T20:15:00Z",
        field=field,
    )


def _require_known(names: Iterable[str]) -> None:
    for name in names:
        if name not in _KNOWN:
            close = difflib.get_close_matches(name, _KNOWN, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_KNOWN)}"
            raise InvalidError(f"unknown query parameter {name[:64]!r}; {hint}", field=name[:64])
