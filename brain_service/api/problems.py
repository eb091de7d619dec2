"""The one place where an error becomes a response: RFC 9457 `application/problem+json`, never a traceback."""

import logging
import math
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from brain_service.errors import BrainError
from brain_service.logs import REQUEST_ID

__all__ = [
    "Answered",
    "encode_problem",
    "install_problem_handlers",
    "problem_headers",
    "problem_response",
    "refuse_websocket",
]

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRIED_STATUS = (429, 503)
V2 = "/v2"
IN_WORDS = {"idempotency-key": "1 to 255 printable characters of ASCII, a UUID for instance"}


def encode_problem(document: dict[str, Any]) -> bytes:
    """Return a problem document as JSON bytes, with the id of the request that it answers, if there is one."""
    request_id = REQUEST_ID.get("")
    if request_id:
        document = {**document, "request_id": request_id}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def problem_headers(document: dict[str, Any]) -> dict[str, str]:
    """Return the headers that go with a problem document.

    429 and 503 carry `Retry-After` in whole seconds: the member `retry_after_s` rounded up, else 1.
    """
    headers = {"Content-Type": MEDIA_TYPE}
    status = int(document["status"])
    if status in RETRIED_STATUS:
        headers["Retry-After"] = str(max(1, math.ceil(document.get("retry_after_s", 1))))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def problem_response(document: dict[str, Any], path: str = "") -> Response:
    """Return the response of a problem document to a request for `path`, with the headers that go with it.

    Below `/v2` it also has `error`, where clients of the Open Inference Protocol look, and a wrong value is a 400.
    """
    if path == V2 or path.startswith(f"{V2}/"):
        status = 400 if document["status"] == 422 else document["status"]
        document = {"error": document["detail"], **document, "status": status}
    return Response(
        encode_problem(document), status_code=int(document["status"]), headers=problem_headers(document)
    )


async def refuse_websocket(error: BrainError, receive: Receive, send: Send) -> None:
    """Answer the handshake with the problem document (ASGI extension `websocket.http.response`)."""
    await receive()
    document = error.problem()
    headers = [(name.lower().encode(), value.encode()) for name, value in problem_headers(document).items()]
    await send({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": encode_problem(document)})


async def _brain_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BrainError)
    if error.status >= 500:
        log.warning("request failed", extra={"path": request.url.path, **error.problem()})
    return problem_response(error.problem(), request.url.path)


async def _invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = "/".join(str(part) for part in first["loc"] if part not in ("body", "query", "path", "header"))
    malformed = first["type"] == "json_invalid"
    # A pattern is for machines; who reads a message wants the rule in words.
    said = f"give {IN_WORDS[field]}" if field in IN_WORDS else first["msg"]
    return problem_response(
        {
            "type": f"urn:continuon-brain:problem:{'malformed' if malformed else 'invalid'}",
            "title": "Malformed body" if malformed else "Invalid value",
            "status": 400 if malformed else 422,
            "detail": f"{field or 'body'}: {said}",
            "field": field or "body",
        },
        request.url.path,
    )


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    slug = {404: "no-such-path", 405: "method-not-allowed"}.get(error.status_code, "http")
    response = problem_response(
        {
            "type": f"urn:continuon-brain:problem:{slug}",
            "title": str(error.detail),
            "status": error.status_code,
            "detail": f"{request.method} {request.url.path}: {error.detail}; GET /openapi.json lists every path",
        },
        request.url.path,
    )
    if error.status_code == 405:
        known = (error.headers or {}).get("Allow", "").split(", ")
        response.headers["Allow"] = ", ".join(sorted(_documented_methods(request).union(filter(None, known))))
    return response


def _documented_methods(request: Request) -> set[str]:
    """Return the methods of every route of this path: the router's own answer names the first route's only."""
    paths: dict[str, dict[str, Any]] = request.app.openapi()["paths"]
    return {
        method.upper()
        for template, operations in paths.items()
        if compile_path(template)[0].match(request.url.path)
        for method in operations
    }


async def _client_gone(_: Request, __: Exception) -> Response:
    """Nobody reads this answer: the client left in the middle of its own body, which is no error of ours."""
    return Response(status_code=400)


class Answered:
    """ASGI middleware that answers what is raised, also an error nobody expected, so that the connection goes on.

    Starlette's own raises it once more after its answer, whereupon the server cuts the connection under a client
    that was told to keep it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection; an answer that has begun can only be cut off."""
        begun = False

        async def note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, note)
        except Exception as error:
            # The boundary of every route but the hot way of capture: the unforeseen becomes a 500.
            if begun or scope["type"] != "http":
                raise
            request = Request(scope)
            if isinstance(error, ClientDisconnect):
                await (await _client_gone(request, error))(scope, receive, send)
                return
            if isinstance(error, BrainError):
                await (await _brain_error(request, error))(scope, receive, send)
                return
            log.error("unexpected error", exc_info=error, extra={"path": scope["path"]})
            problem = BrainError("unexpected error; the daemon's log has the details").problem()
            await problem_response(problem, scope["path"])(scope, receive, send)


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error of `app` a problem document."""
    app.add_exception_handler(BrainError, _brain_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_middleware(Answered)
