"""What every request goes through first: it gets an id, and its answer's duration and status are counted.

An id that the client sent (`X-Request-ID`: 1 to 128 letters, digits, dots, dashes and underscores) is kept, so
that a robot's log and the daemon's can be laid side by side; another is replaced. The answer carries it, a problem
document too, and every line that is logged meanwhile.
"""

import itertools
import re
import secrets
import time
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from brain_service.logs import REQUEST_ID
from brain_service.metrics import OTHER, HistogramFamily
from brain_service.tracing import Tracing

__all__ = ["HttpMetrics", "Observed"]

_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLASSES = {number: f"{number}xx" for number in range(1, 6)}
_STEPS, _STREAM = "/episodes/{episode_id}/steps", "/episodes/{episode_id}/stream"


class HttpMetrics:
    """Durations of answers by method, route and class of status, and the WebSockets that are open by route."""

    def __init__(self) -> None:
        self.durations = HistogramFamily(
            "brain_http_request_duration_seconds",
            "Time from a request's arrival at the application to the head of its answer.",
            ("method", "route", "status"),
            max_series=400,
        )
        self.websockets: dict[str, int] = {}


class Observed:
    """ASGI middleware around everything else. `X-Request-ID` comes and goes here."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics, tracing: Tracing | None = None) -> None:
        self.app = app
        self._tracing = tracing
        self._metrics = metrics
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        begun_s = time.perf_counter()
        request_id = self._request_id(scope)
        REQUEST_ID.set(request_id)
        header = (b"x-request-id", request_id.encode())
        if kind == "websocket":
            await self._websocket(scope, receive, send, header)
            return
        status, answered_s = 500, 0.0

        def note(message: Message) -> Awaitable[None]:
            nonlocal status, answered_s
            if message["type"] == "http.response.start":
                status, answered_s = message["status"], time.perf_counter()
                message["headers"] = [*message["headers"], header]
            return send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else OTHER
            series = self._metrics.durations.of(method, _route(scope), _CLASSES.get(status // 100, OTHER))
            # A client that left before the answer's head is counted until it left.
            series.observe((answered_s or time.perf_counter()) - begun_s)
            if self._tracing is not None:
                self._trace(scope, status, time.perf_counter() - begun_s, request_id)

    def _trace(self, scope: Scope, status: int, duration_s: float, request_id: str) -> None:
        assert self._tracing is not None
        route = _route(scope)
        attributes = {
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": status,
            "brain.request_id": request_id,
        }
        parent = next((value for name, value in scope["headers"] if name == b"traceparent"), b"").decode("latin-1")
        name = f"{scope['method']} {route}"
        self._tracing.ended(name, duration_s, attributes, failed=status >= 500, parent=parent)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send, header: tuple[bytes, bytes]) -> None:
        route = ""
        open_now = self._metrics.websockets

        def note(message: Message) -> Awaitable[None]:
            nonlocal route
            if message["type"] in ("websocket.accept", "websocket.http.response.start"):
                message["headers"] = [*message.get("headers", ()), header]
            if message["type"] == "websocket.accept":
                route = _STREAM if scope["path"].startswith("/episodes/") else scope["path"]
                open_now[route] = open_now.get(route, 0) + 1
            return send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            if route:
                open_now[route] -= 1

    def _request_id(self, scope: Scope) -> str:
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _ID.fullmatch(value):
                given: bytes = value
                return given.decode()
        return f"{self._prefix}-{next(self._numbers)}"


def _route(scope: Scope) -> str:
    """Return the template of a request's route: as many as there are routes, whatever is asked for."""
    route = scope.get("route")
    if route is not None:
        return str(getattr(route, "path", OTHER))
    path: str = scope["path"]
    if path == "/infer":
        return path
    if path.startswith("/episodes/") and path.endswith("/steps") and path.count("/") == 3:
        return _STEPS
    return OTHER
