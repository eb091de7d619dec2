"""`GET /`: the operator's page and its files; `GET /status` and `/status/stream`: everything that it shows."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Request
from starlette.responses import Response, StreamingResponse

from brain_service.api.auth import GRANTED, STATUS_STREAM
from brain_service.api.bodies import JsonResponse
from brain_service.api.openapi_answers import answers
from brain_service.api.services import ServicesDep
from brain_service.api.stream import AUTHORISED
from brain_service.dashboard import PAGE_HEADERS, Asset
from brain_service.dashboard.snapshots import Snapshots
from brain_service.errors import NotFoundError

__all__ = ["router"]

router = APIRouter(tags=["dashboard"])

_STATUS: dict[str, Any] = {
    "type": "object",
    "required": ["access", "now_ns", "state", "inference", "sessions", "capture", "jobs", "learning", "models"],
    "properties": {
        "access": {"type": "object", "description": "Whether tokens are asked for, and what this one may do."},
        "state": {
            "type": "object",
            "required": ["word", "reason", "level"],
            "properties": {
                "word": {"type": "string"},
                "reason": {"type": "string"},
                "level": {"enum": ["ok", "warn", "bad"]},
            },
        },
    },
}


def _file(assets: Mapping[str, Asset], path: str, known: str | None) -> Response:
    asset = assets.get(path)
    if asset is None:
        raise NotFoundError(f"the page has no file {path!r}; it has {', '.join(sorted(assets))}")
    headers = {**PAGE_HEADERS, "ETag": asset.etag}
    if known is not None and asset.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.body, media_type=asset.media_type, headers=headers)


@router.api_route(
    "/",
    methods=["GET", "HEAD"],
    operation_id="page",
    responses=answers(),
    response_class=Response,
    include_in_schema=False,
)
async def page(services: ServicesDep, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """Return the operator's page; it is the same for everybody and shows nothing without a token."""
    return _file(services.page, "/", if_none_match)


@router.api_route("/dashboard/{name}", methods=["GET", "HEAD"], operation_id="page_file", include_in_schema=False)
async def page_file(
    name: str, services: ServicesDep, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """Return one of the page's files.

    Raises:
        NotFoundError: it has no such file.
    """
    return _file(services.page, f"/dashboard/{name}", if_none_match)


@router.get("/status", operation_id="status", responses=answers(schema=_STATUS))
async def status(request: Request) -> Response:
    """Return everything that the page shows, at most a second old.

    Parts: state in one word with its reason, inference, sessions, capture, jobs, learning with its curve, models
    with their evaluation, machine, health and the operator's events.
    """
    snapshot = await _snapshots(request).newest()
    return JsonResponse({"access": _access(request), **snapshot.parts}, headers={"Cache-Control": "no-store"})


@router.get(
    STATUS_STREAM,
    operation_id="status_stream",
    responses=answers() | {200: {"description": "Server-sent events", "content": {"text/event-stream": {}}}},
    response_class=StreamingResponse,
)
async def status_stream(request: Request) -> StreamingResponse:
    """Stream the same once a second (server-sent events) until the client leaves.

    The first event is `access`, the second `snapshot` with everything, then `changes` with the parts that differ.
    A client that falls behind gets a `snapshot` again. The stream ends when its token is taken out of the file.
    """
    allowed: Callable[[], bool] = request.scope.get(AUTHORISED, lambda: True)

    async def events() -> AsyncIterator[bytes]:
        yield b"event: access\ndata: %s\n\n" % orjson.dumps(_access(request))
        async for frame in _snapshots(request).follow(allowed):
            yield frame

    return StreamingResponse(
        events(),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
    )


def _snapshots(request: Request) -> Snapshots:
    snapshots: Snapshots = request.app.state.snapshots
    return snapshots


def _access(request: Request) -> dict[str, Any]:
    granted = request.scope.get(GRANTED)
    return {
        "tokens": granted is not None,
        "scopes": sorted(granted) if granted is not None else ["control", "operate", "read"],
        "may_operate": granted is None or "operate" in granted,
    }
