"""One answered step, whatever protocol asked for it: the router's action, and the note for the recorder."""

from dataclasses import replace
from typing import Any

import msgspec

from brain_service.api.services import Services
from brain_service.inference.calls import InferReply, InferRequest

__all__ = ["InferBody", "act", "answer_step", "end_session", "reply_document"]


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
    reply = await services.router.infer(asked)
    unrecorded = services.recorder.answered(record, asked, reply)
    return replace(reply, warnings=(*reply.warnings, *unrecorded)) if unrecorded else reply


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
