"""`/sessions` and `/infer`: the way of an action. Nothing here blocks; the model runs in another process."""

import time
from dataclasses import asdict
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from brain_service.api.bodies import JsonResponse, decode, read_body
from brain_service.api.services import ServicesDep
from brain_service.inference.calls import InferRequest

__all__ = ["router"]

router = APIRouter(tags=["inference"])


class InferBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `/infer`. `reward` and `executed_action` describe the step before; step 0 ignores them."""

    session_id: str
    observation: dict[str, Any]
    step: int | None = None
    reward: float = 0.0
    executed_action: dict[str, Any] | None = None
    deadline_ms: float | None = None
    record: str | None = None
    why: bool = False


class SessionBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /sessions`: no fields; a session begins on the active model."""


@router.post("/sessions", status_code=201, operation_id="create_session")
async def create_session(request: Request, services: ServicesDep) -> JsonResponse:
    """Start a session: one robot's recurrent state, at zero, on the active model."""
    decode(await read_body(request, services.settings.capture.max_step_bytes) or b"{}", SessionBody)
    session = await services.router.create_session()
    return JsonResponse(asdict(session), status_code=201, headers={"Location": f"/sessions/{session.session_id}"})


@router.get("/sessions", operation_id="list_sessions")
async def list_sessions(services: ServicesDep) -> JsonResponse:
    """List the live sessions."""
    return JsonResponse({"sessions": [asdict(session) for session in services.router.list_sessions()]})


@router.get("/sessions/{session_id}", operation_id="get_session")
async def get_session(session_id: str, services: ServicesDep) -> JsonResponse:
    """Tell a session's model and next step."""
    return JsonResponse(asdict(services.router.get_session(session_id)))


@router.post("/sessions/{session_id}/reset", operation_id="reset_session")
async def reset_session(session_id: str, services: ServicesDep) -> JsonResponse:
    """Begin anew: zero state, next step 0, on the model that is active now."""
    session = await services.router.reset_session(session_id)
    services.recorder.release(session_id)
    return JsonResponse(asdict(session))


@router.delete("/sessions/{session_id}", status_code=204, operation_id="end_session")
async def end_session(session_id: str, services: ServicesDep) -> Response:
    """End a session and free its state."""
    await services.router.end_session(session_id)
    services.recorder.release(session_id)
    return Response(status_code=204)


@router.post("/infer", operation_id="infer")
async def infer(request: Request, services: ServicesDep) -> JsonResponse:
    """Answer the action for one observation, before `deadline_ms` counted from receipt, or 504.

    The state advances once per answered step: after an error the next step is still `next_step`, and a repeat
    of an answered step gets the stored answer. A step that could not be recorded is a warning in the next answer;
    with `why` the answer says where it comes from.
    """
    received_ns = time.monotonic_ns()
    body = decode(await read_body(request, services.settings.capture.max_step_bytes), InferBody)
    asked = InferRequest(
        session_id=body.session_id,
        step=body.step,
        observation=body.observation,
        reward=body.reward,
        executed_action=body.executed_action,
        deadline_ms=body.deadline_ms,
        received_ns=received_ns,
        why=body.why,
    )
    reply = await services.router.infer(asked)
    unrecorded = services.recorder.answered(body.record, asked, reply)
    answer = {
        "action": reply.action,
        "step": reply.step,
        "model_id": reply.model_id,
        "model_since_step": reply.model_since_step,
        "backend": reply.backend,
        "state_step": reply.state_step,
        "timings_us": reply.timings_us,
        "warnings": (*reply.warnings, *unrecorded),
    }
    if reply.why is not None:
        answer["why"] = reply.why | {"warnings": answer["warnings"]}
    return JsonResponse(answer)
