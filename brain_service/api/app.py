"""The FastAPI application over the daemon's services."""

from fastapi import FastAPI

import brain_service
from brain_service.api import episodes, images, inference, jobs, models, status
from brain_service.api.auth import Guard, TokenSource
from brain_service.api.capture import CaptureTransport
from brain_service.api.problems import install_problem_handlers
from brain_service.api.services import Services

__all__ = ["create_app"]


def create_app(services: Services, tokens: TokenSource | None = None) -> FastAPI:
    """Return the application; with `tokens`, every request but `/livez` and `/readyz` needs one.

    Outermost stands the guard, then the hot path of capture, then FastAPI's router.
    """
    app = FastAPI(
        title="continuon-brain",
        version=brain_service.__version__,
        summary="Records what a robot lived, learns from it, and answers what to do next.",
        # Their pages load scripts from a host elsewhere, which a robot cannot and should not reach.
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    install_problem_handlers(app)
    for module in (status, episodes, images, inference, models, jobs):
        app.include_router(module.router)
    app.add_middleware(CaptureTransport, store=services.store, settings=services.settings.capture)
    app.add_middleware(Guard, source=tokens)
    return app
