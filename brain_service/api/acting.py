"""One answered step, whatever protocol asked for it: the router's action, and the note for the recorder."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from brain_service.api.services import Services
from brain_service.errors import BrainError
from brain_service.inference.calls import InferReply, InferRequest
from brain_service.pixels import encode_png
from brain_service.trees import flatten, unflatten

__all__ = ["InferBody", "act", "answer_step", "end_session", "reply_document"]


class InferBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `/infer`. `reward` and `executed_action` describe the step before; step 0 ignores them."""

    session_id: str
    observation: dict[str, Any]
    step: int | None = None
    reward: float | None = None
    executed_action: dict[str, Any] | None = None
    deadline_ms: float | None = None
    record: str | None = None
    why: bool = False


async def act(services: Services, body: InferBody, received_ns: int) -> dict[str, Any]:
    """Answer one body of `/infer` that was received at `received_ns` (`time.monotonic_ns()`).

    Raises:
        BrainError: as `InferenceRouter.infer`; the state is unchanged.
    """
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
    return reply_document(await answer_step(services, asked, body.record))


async def answer_step(services: Services, asked: InferRequest, record: str | None) -> InferReply:
    """Let the router answer and the recorder note it, into episode `record` if one is named.

    A step before that could not be recorded is a warning of this answer.

    Raises:
        BrainError: as `InferenceRouter.infer`; the state is unchanged and nothing is recorded.
    """
    if record is not None:
        asked = await _with_image_file(services, asked)
    reply = await services.router.infer(asked)
    unrecorded = services.recorder.answered(record, asked, reply)
    return replace(reply, warnings=(*reply.warnings, *unrecorded)) if unrecorded else reply


async def _with_image_file(services: Services, asked: InferRequest) -> InferRequest:
    """Return the request with the model's image as a file, which episodes keep, where it came as pixels."""
    try:
        image = services.router.manifest(asked.session_id).image
    except BrainError:
        return asked  # the router says what is wrong
    if image is None or not isinstance(asked.observation, Mapping):
        return asked
    given = flatten(asked.observation, "observation")
    pixels = given.get(image.path)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != image.source:
        return asked
    given[image.path] = await asyncio.to_thread(encode_png, pixels)
    return replace(asked, observation=unflatten(given))


def reply_document(reply: InferReply) -> dict[str, Any]:
    """Return the answer of `/infer`; its arrays are still NumPy ones."""
    document = {
        "action": reply.action,
        "step": reply.step,
        "model_id": reply.model_id,
        "model_since_step": reply.model_since_step,
        "backend": reply.backend,
        "state_step": reply.state_step,
        "timings_us": reply.timings_us,
        "warnings": reply.warnings,
    }
    if reply.why is not None:
        document["why"] = reply.why | {"warnings": reply.warnings}
    return document


async def end_session(services: Services, session_id: str) -> None:
    """End a session, and write the step that the recorder held back for it.

    Raises:
        NotFoundError: there is no such session.
    """
    await services.router.end_session(session_id)
    services.recorder.release(session_id)
