"""Requests and what they mean, written once for the sync and the async client.

A flow is a generator: it yields each request, is sent the answer (or thrown the error of the way), and returns the
result. `run` and `run_async` drive it over real connections.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from brain_service.client.errors import ClientError, UnreachableError, response_error
from brain_service.client.wire import JsonObject, as_arrays

if TYPE_CHECKING:
    from brain_service.client.acting_stream import AsyncInferStream, InferStream

__all__ = [
    "INFER_PATH",
    "Call",
    "Flow",
    "ask",
    "episode_path",
    "fetch_health",
    "fetch_json",
    "fetch_page",
    "fetch_steps",
    "read_object",
    "run",
    "run_async",
]

T = TypeVar("T")
INFER_PATH = "/infer"
JSON_HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `timeout_s` None is the client's own."""

    method: str
    path: str
    content: bytes | None = field(default=None, repr=False)
    params: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: JSON_HEADERS)
    timeout_s: float | None = None

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of httpx's `request`."""
        found: dict[str, Any] = {"content": self.content, "params": self.params, "headers": self.headers}
        if self.timeout_s is not None:
            found["timeout"] = self.timeout_s
        return found


Flow = Generator[Call, httpx.Response, T]


def run(http: "httpx.Client | InferStream", flow: Flow[T]) -> T:
    """Drive a flow on this thread.

    Raises:
        ClientError: whatever the flow raises.
    """
    try:
        call = next(flow)
        while True:
            try:
                response = http.request(call.method, call.path, **call.options())
            except httpx.HTTPError as error:
                call = flow.throw(_unreachable(call, error))
            else:
                call = flow.send(response)
    except StopIteration as done:
        result: T = done.value
        return result


async def run_async(http: "httpx.AsyncClient | AsyncInferStream", flow: Flow[T]) -> T:
    """Drive a flow on this event loop.

    Raises:
        ClientError: whatever the flow raises.
    """
    try:
        call = next(flow)
        while True:
            try:
                response = await http.request(call.method, call.path, **call.options())
            except httpx.HTTPError as error:
                call = flow.throw(_unreachable(call, error))
            else:
                call = flow.send(response)
    except StopIteration as done:
        result: T = done.value
        return result


def _unreachable(call: Call, error: httpx.HTTPError) -> UnreachableError:
    reason = str(error) or type(error).__name__
    failed = UnreachableError(f"{call.method} {call.path}: {reason}; is the daemon running?")
    failed.__cause__ = error
    return failed


def ask(call: Call) -> Flow[httpx.Response]:
    """Make one request and return its answer.

    Raises:
        ProblemError: an answer of 400 or above.
        UnreachableError: no answer.
    """
    response = yield call
    if response.status_code >= 400:
        raise response_error(response)
    return response


def fetch_json(path: str, params: Mapping[str, Any] | None = None) -> Flow[JsonObject]:
    """Read a JSON object; a cut connection (the daemon's restart) is tried once more, since reading is harmless.

    Raises:
        ClientError: as `ask`.
    """
    call = Call("GET", path, params=params, headers={})
    try:
        response = yield from ask(call)
    except UnreachableError:
        response = yield from ask(call)
    return read_object(response)


def read_object(response: httpx.Response) -> JsonObject:
    """Return the JSON object of an answer.

    Raises:
        ClientError: the answer is no JSON object: something else than the daemon gave it.
    """
    try:
        return msgspec.json.decode(response.content, type=JsonObject)
    except msgspec.DecodeError as error:
        raise ClientError(f"{response.request.url.path} answered something other than JSON: {error}") from error


def fetch_health() -> Flow[JsonObject]:
    """Read `/health`; 503 is the answer of a daemon that is not well, not an error.

    Raises:
        ClientError: no answer, or an answer that is no health document.
    """
    response = yield Call("GET", "/health", headers={})
    if response.status_code not in (200, 503) or "problem" in response.headers.get("content-type", ""):
        raise response_error(response)
    return read_object(response)


def episode_path(episode_id: str, tail: str = "") -> str:
    """Return `/episodes/<id><tail>`, the id quoted."""
    return f"/episodes/{quote(episode_id, safe='')}{tail}"


def fetch_page(
    filters: Mapping[str, Any], limit: int, cursor: str | None
) -> Flow[tuple[list[JsonObject], str | None]]:
    """Read one page of the catalogue and the cursor of the next (None: no more).

    Raises:
        ClientError: as `ask`.
    """
    params = {name: value for name, value in filters.items() if value not in (None, ())}
    page = yield from fetch_json("/episodes", params | {"limit": limit} | ({"cursor": cursor} if cursor else {}))
    return page["episodes"], page["next_cursor"]


def fetch_steps(episode_id: str, start: int, limit: int) -> Flow[list[JsonObject]]:
    """Read step records from index `start`, their observations and actions as arrays of the features' shapes.

    Raises:
        ClientError: as `ask`.
    """
    page = yield from fetch_json(episode_path(episode_id, "/steps"), {"start": start, "limit": limit})
    records: list[JsonObject] = page["steps"]
    for record in records:
        for name in ("observation", "action", "executed_action"):
            if name in record:
                record[name] = as_arrays(record[name])
    return records
