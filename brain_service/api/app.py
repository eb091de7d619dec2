"""The FastAPI application over the daemon's services."""

from typing import Any

from fastapi import FastAPI, Request
from starlette.types import Receive, Scope, Send

import brain_service
from brain_service.api import (
    audit,
    dashboard,
    episodes,
    hardware,
    images,
    inference,
    job_pause,
    jobs,
    metrics,
    models,
    open_inference,
    status,
)
from brain_service.api.audit import Audited
from brain_service.api.auth import Guard, TokenSource
from brain_service.api.capture import CaptureTransport
from brain_service.api.infer_stream import serve_infer_stream
from brain_service.api.openapi import state_parameters_plainly
from brain_service.api.openapi_answers import state_problems
from brain_service.api.openpi import serve_openpi
from brain_service.api.problems import Answered, install_problem_handlers, refuse_websocket
from brain_service.api.request_metrics import HttpMetrics, Observed
from brain_service.api.services import Services
from brain_service.dashboard.snapshots import Snapshots
from brain_service.errors import NotFoundError

__all__ = ["create_app"]

_WEBSOCKETS = {"/": serve_openpi, "/infer/stream": serve_infer_stream}


class _App(FastAPI):
    """FastAPI behind the guard and the hot paths of capture and action.

    As FastAPI's own middleware they would stand behind its error handling and telemetry, which cost each step more
    than they do themselves.
    """

    def __init__(self, services: Services, tokens: TokenSource | None) -> None:
        super().__init__(
            title="continuon-brain",
            version=brain_service.__version__,
            summary="Records what a robot lived, learns from it, and answers what to do next.",
            # Their pages load scripts from a host elsewhere, which a robot cannot and should not reach.
            docs_url=None,
            redoc_url=None,
        )
        self.state.services = services
        self._acting = Answered(self._act)
        self.state.http_metrics = HttpMetrics()
        capture = CaptureTransport(self._route, services.store, services.settings.capture)
        audited = Audited(Guard(capture, tokens, (services.settings.host,)), services.audit)
        self._front = Observed(audited, self.state.http_metrics, services.tracing)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        await self._front(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            serve = _WEBSOCKETS.get(scope["path"])
            if serve is None:
                known = ", ".join((*_WEBSOCKETS, "/episodes/{id}/stream"))
                error = NotFoundError(f"no WebSocket at {scope['path']!r}; there are {known}")
                await refuse_websocket(error, receive, send)
            else:
                await serve(self.state.services, scope, receive, send)
        elif scope["path"] == "/infer" and scope["method"] == "POST":
            await self._acting(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _act(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer `POST /infer` by the function that the router documents, without the router's way to it."""
        scope["app"] = self
        response = await inference.infer(Request(scope, receive), self.state.services)
        await response(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document; it is made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            state_parameters_plainly(document)
            state_problems(document)
        assert self.openapi_schema is not None
        return self.openapi_schema


def create_app(services: Services, tokens: TokenSource | None = None) -> FastAPI:
    """Return the application; with `tokens`, every request but those for liveness and readiness needs one.

    Outermost requests are counted and get their ids; then come the audit log, the guard, the hot path of capture,
    and FastAPI's router.
    """
    app = _App(services, tokens)
    install_problem_handlers(app)
    app.state.snapshots = Snapshots(services)
    for module in (
        *(dashboard, status, metrics, hardware, episodes, images),
        *(inference, models, job_pause, jobs, audit, open_inference),
    ):
        app.include_router(module.router)
    return app
