"""`/livez`, `/healthz`, `/readyz` and `/health`: read by systemd, by load balancers and by operators."""

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import PlainTextResponse

from brain_service.api.bodies import JsonResponse
from brain_service.api.health_report import gather_checks
from brain_service.api.services import Services, ServicesDep
from brain_service.errors import UnavailableError
from brain_service.health.check import Check, overall
from brain_service.health.checks import capture_obstacle

__all__ = ["health_checks", "router"]

router = APIRouter(tags=["status"])


@router.get("/livez", operation_id="livez")
async def livez() -> JsonResponse:
    """Answer 200 while the event loop turns; nothing else is looked at."""
    return JsonResponse({"status": "pass"})


@router.get("/healthz", operation_id="healthz", response_class=PlainTextResponse)
async def healthz() -> PlainTextResponse:
    """Answer as openpi's policy server does; the same question as `/livez`."""
    return PlainTextResponse("OK\n")


@router.get("/readyz", operation_id="readyz")
async def readyz(
    services: ServicesDep,
    part: Annotated[Literal["capture", "inference"], Query(alias="for")] = "capture",
) -> JsonResponse:
    """Answer 200 when capture takes steps, or with `?for=inference` when a warmed model answers; else 503.

    Raises:
        UnavailableError: the medium takes no steps, or there is no warmed model; with the reason.
    """
    if part == "inference" and not services.router.ready:
        raise UnavailableError("no warmed model; GET /models tells why, POST /pipeline trains one")
    if part == "capture":
        settings = services.settings
        # One question to the file system, and that not on the event loop: the medium may be slow.
        problem = await asyncio.to_thread(capture_obstacle, settings.episodes_dir, settings.capture.min_free_bytes)
        if problem:
            raise UnavailableError(f"no steps are taken: {problem}")
    return JsonResponse({"status": "pass"})


@router.get("/health", operation_id="health")
async def health(services: ServicesDep) -> JsonResponse:
    """Check every part; 503 where one fails. Each check tells its value, and where it is not well, the fix."""
    checks = await health_checks(services)
    status = overall(checks)
    return JsonResponse(
        {"status": status, "checks": {name: [check.to_json()] for name, check in checks.items()}},
        status_code=503 if status == "fail" else 200,
    )


async def health_checks(services: Services) -> dict[str, Check]:
    """Return the checks of `/health` by name."""
    # Asked on the event loop, where these two live; the rest may block.
    inference = services.router.status()
    recording = services.recorder.failed_steps, services.recorder.last_error
    return await asyncio.to_thread(gather_checks, services, inference, recording)
