"""`/metrics`: the daemon's numbers for Prometheus. What lives on the loop is read there, the rest in a thread."""

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from brain_service.api.metrics_page import Live, metrics_page
from brain_service.api.services import ServicesDep
from brain_service.metrics import CONTENT_TYPE

__all__ = ["router"]

router = APIRouter(tags=["status"])


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request, services: ServicesDep) -> Response:
    """Return every number in Prometheus' text format: base units, labels from small fixed sets only."""
    http = request.app.state.http_metrics
    live = Live(
        inference=services.router.status(),
        recording=(services.recorder.failed_steps, services.recorder.last_error),
        websockets=dict(http.websockets),
    )
    page = await asyncio.to_thread(metrics_page, services, http, live)
    return Response(page, headers={"Content-Type": CONTENT_TYPE})
