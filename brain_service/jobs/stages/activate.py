"""Stage: the daemon serves the new model. It alone swaps models, so the job asks and waits for its answer."""

from brain_service.errors import ConflictError, UnavailableError
from brain_service.jobs.adapter_audit import catch_up, note_verdict
from brain_service.jobs.context import JobContext
from brain_service.jobs.params import PipelineParams
from brain_service.jobs.stages import Outcome

__all__ = ["command", "run"]

# Beyond the daemon's own limit for a worker that loads and compiles a model.
MARGIN_S = 60.0


def command(context: JobContext) -> str | None:
    """Return the request that activates the same model."""
    settings, model_id = context.settings, context.result.get("model_id")
    return f"curl -X POST http://{settings.host}:{settings.port}/models/{model_id}/activate"


def run(context: JobContext) -> Outcome:
    """Ask the daemon to load, check, warm and swap in the model, and wait until it has.

    Raises:
        ConflictError: the daemon refused the model, with its reason; what was active goes on serving.
        UnavailableError: no daemon answered in time.
        CancelledJobError: the job was asked to stop.
    """
    model_id = str(context.result["model_id"])
    if isinstance(context.params, PipelineParams) and not context.params.activate:
        return Outcome("not asked for", {"activated": False}, skipped=True)
    promotion = (context.result.get("evaluation") or {}).get("promotion")
    if promotion and not promotion["promoted"]:
        reason = f"not promoted: {promotion['reason']}; POST /models/{model_id}/activate serves it all the same"
        note_verdict(context, promoted=False, reason=reason)
        return Outcome(reason, {"activated": False}, skipped=True)
    catch_up(context)
    timeout_s = context.settings.inference.worker_start_timeout_s + MARGIN_S
    request = context.table.request_activation(model_id, context.job.job_id)
    answer = context.table.wait_activation(request, timeout_s, context.should_stop)
    context.check_stop()
    if answer.state == "failed":
        note_verdict(context, promoted=False, reason=f"the daemon refused the model: {answer.detail}")
        raise ConflictError(f"model {model_id} was not activated: {answer.detail}", model_id=model_id)
    if answer.state != "done":
        raise UnavailableError(
            f"no daemon activated model {model_id} within {timeout_s:.0f} s; start 'brain serve', then "
            f"POST /models/{model_id}/activate",
            model_id=model_id,
        )
    note_verdict(context, promoted=True, reason=promotion["reason"] if promotion else "no model was active")
    return Outcome(f"model {model_id} serves", {"activated": True})
