"""`/sessions` and `/infer`: the way of an action. Nothing here blocks; the model runs in another process."""

import time
from dataclasses import asdict

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from brain_service.api import acting
from brain_service.api.acting import InferBody, act
from brain_service.api.bodies import JsonResponse, MsgpackResponse, decode, decode_msgpack, read_body
from brain_service.api.openapi import ACTED, INFER
from brain_service.api.openapi import body as body_of
from brain_service.api.openapi_answers import answers
from brain_service.api.services import ServicesDep
from brain_service.episodes.wire import body_kind

__all__ = ["router"]

router = APIRouter(tags=["inference"])


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
    await acting.end_session(services, session_id)
    return Response(status_code=204)


@router.post(
    "/infer",
    operation_id="infer",
    openapi_extra=body_of(INFER, required=True),
    responses=answers(400, 409, 413, 415, 422, 504, schema=ACTED),
)
async def infer(request: Request, services: ServicesDep) -> Response:
    """Answer the action for one observation, before `deadline_ms` counted from receipt, or 504.

    The state advances once per answered step: after an error the next step is still `next_step`, and a repeat
    of an answered step gets the stored answer. A step that could not be recorded is a warning in the next answer;
    with `why` the answer says where it comes from. A body in `application/msgpack` is answered in it. `WS
    /infer/stream` is the same over one connection.
    """
    received_ns = time.monotonic_ns()
    body = await read_body(request, services.settings.capture.max_step_bytes)
    if body_kind(request.headers.get("content-type", "")) == "msgpack":
        return MsgpackResponse(await act(services, decode_msgpack(body, InferBody), received_ns))
    return JsonResponse(await act(services, decode(body, InferBody), received_ns))
