"""The one place where an error becomes a response: RFC 9457 `application/problem+json`, never a traceback."""

import logging
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from brain_service.errors import BrainError

__all__ = ["install_problem_handlers", "problem_response"]

log = logging.getLogger(__name__)

RETRY_AFTER_S = {429: "1", 503: "1"}


def problem_response(document: dict[str, Any]) -> Response:
    """Return the response of a problem document; 429 and 503 carry `Retry-After` in seconds."""
    status = int(document["status"])
    headers = {"Retry-After": RETRY_AFTER_S[status]} if status in RETRY_AFTER_S else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(
        orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY),
        status_code=status,
        headers=headers,
        media_type="application/problem+json",
    )


async def _brain_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BrainError)
    if error.status >= 500:
        log.warning("request failed", extra={"path": request.url.path, **error.problem()})
    return problem_response(error.problem())


async def _invalid_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = "/".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    malformed = first["type"] == "json_invalid"
    return problem_response(
        {
            "type": f"urn:continuon-brain:problem:{'malformed' if malformed else 'invalid'}",
            "title": "Malformed body" if malformed else "Invalid value",
            "status": 400 if malformed else 422,
            "detail": f"{field or 'body'}: {first['msg']}",
            "field": field or "body",
        }
    )


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    slug = {404: "no-such-path", 405: "method-not-allowed"}.get(error.status_code, "http")
    return problem_response(
        {
            "type": f"urn:continuon-brain:problem:{slug}",
            "title": str(error.detail),
            "status": error.status_code,
            "detail": f"{request.method} {request.url.path}: {error.detail}; GET /openapi.json lists every path",
        }
    )


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("unexpected error", exc_info=error, extra={"path": request.url.path})
    return problem_response(BrainError("unexpected error; the daemon's log has the details").problem())


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error of `app` a problem document."""
    app.add_exception_handler(BrainError, _brain_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _unexpected)
