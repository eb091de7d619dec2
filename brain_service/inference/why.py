"""`why` of an answer: which model on which backend gave this action, why there, from which state, and how."""

from typing import Any

from brain_service.inference.calls import InferReply
from brain_service.inference.served_model import ServedModel

__all__ = ["explain"]


def explain(model: ServedModel, reply: InferReply) -> dict[str, Any]:
    """Return what an operator asks about an action, JSON-ready.

    `fallback` names the first backend of the order that was passed over, with the reason, or is None.
    """
    status = model.status()
    decisions = status["why"]
    used = next((place for place, decision in enumerate(decisions) if decision["used"]), len(decisions))
    passed_over = decisions[:used]
    return {
        "model_id": reply.model_id,
        "backend": reply.backend,
        "backend_reason": decisions[used]["reason"] if used < len(decisions) else None,
        "fallback": passed_over[0] if passed_over else None,
        "decisions": decisions,
        "golden_parity": status["golden_parity"],
        "worker_restarts": status["worker_restarts"],
        "state_step": reply.state_step,
        "bucket": reply.bucket,
        "row": reply.row,
        "timings_us": reply.timings_us,
        "warnings": reply.warnings,
    }
