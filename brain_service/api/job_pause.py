"""`POST /jobs/pause` and `POST /jobs/resume`: learning rests, and goes on, because an operator says so."""

import asyncio
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request

from brain_service.api.bodies import JsonResponse, decode, read_body
from brain_service.api.openapi import body
from brain_service.api.openapi_answers import answers
from brain_service.api.services import ServicesDep
from brain_service.jobs.hold import Hold

__all__ = ["router"]

router = APIRouter(tags=["jobs"])

MAX_BODY_BYTES = 4096
MAX_REASON = 200

_HELD: dict[str, Any] = {
    "type": "object",
    "required": ["paused", "reason", "since_ns"],
    "properties": {
        "paused": {"type": "boolean"},
        "reason": {"type": "string"},
        "since_ns": {"type": ["integer", "null"], "description": "Unix time."},
    },
}
_PAUSE = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"reason": {"type": "string", "maxLength": MAX_REASON, "description": "For who looks later."}},
}


class _Pause(msgspec.Struct, forbid_unknown_fields=True):
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON)] = ""


@router.post(
    "/jobs/pause",
    operation_id="pause_jobs",
    responses=answers(400, 413, 415, 422, schema=_HELD),
    openapi_extra=body({"application/json": _PAUSE}, required=False),
)
async def pause(request: Request, services: ServicesDep) -> JsonResponse:
    """Let trainings on this machine rest, over restarts too, until `POST /jobs/resume`.

    A training that runs saves itself and rests after its step; one that is queued begins and rests. Other jobs and
    trainings elsewhere go on.
    """
    asked = decode(await read_body(request, MAX_BODY_BYTES) or b"{}", _Pause)
    hold = Hold(services.settings.jobs_dir)
    await asyncio.to_thread(hold.pause, asked.reason)
    return JsonResponse(await asyncio.to_thread(hold.status))


@router.post("/jobs/resume", operation_id="resume_jobs", responses=answers(schema=_HELD))
async def resume(services: ServicesDep) -> JsonResponse:
    """Let trainings go on; without a pause it changes nothing."""
    hold = Hold(services.settings.jobs_dir)
    await asyncio.to_thread(hold.resume)
    return JsonResponse(await asyncio.to_thread(hold.status))
