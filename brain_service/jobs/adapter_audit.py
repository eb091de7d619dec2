"""What a job adds to the audit of adapters once it is known whether they serve."""

from collections.abc import Mapping
from typing import Any

from brain_service.errors import BrainError
from brain_service.jobs.bases import active_adapters
from brain_service.jobs.context import JobContext
from brain_service.training.torch_lora.store import AdapterStore

__all__ = ["catch_up", "note_verdict"]


def catch_up(context: JobContext) -> None:
    """Note what serves now where the audit does not know, before the job changes it."""
    if not _adapters(context):
        return
    try:
        AdapterStore(context.settings.adapters_dir).catch_up(active_adapters(context.settings))
    except BrainError as error:
        context.say(f"the audit of adapters cannot be brought up to date: {error.detail}")


def note_verdict(context: JobContext, *, promoted: bool, reason: str) -> None:
    """Note a fine-tuning's end with the figures of its evaluation; a job without adapters leaves nothing.

    Told after the fact: a medium that is full costs the line, which the log then has, and not the model.
    """
    trained = _adapters(context)
    if not trained:
        return
    try:
        AdapterStore(context.settings.adapters_dir).note(
            "promoted" if promoted else "not promoted",
            trained["checkpoint"],
            trained["sha256"],
            f"job {context.job.job_id}",
            verdict=reason,
            model_id=context.result.get("model_id"),
            evaluation=(context.result.get("evaluation") or {}).get("promotion"),
        )
    except BrainError as error:
        context.say(f"the audit of adapters has no line for this: {error.detail}")


def _adapters(context: JobContext) -> Mapping[str, Any]:
    trained: Mapping[str, Any] = context.result.get("train") or {}
    return trained if trained.get("sha256") else {}
