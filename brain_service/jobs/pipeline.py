"""Runs a job's stages in order; stages that an earlier attempt finished are passed over."""

import time
from dataclasses import replace

from brain_service.jobs.context import JobContext
from brain_service.jobs.stages import STAGES, Stage

__all__ = ["run_stages"]


def run_stages(context: JobContext) -> None:
    """Run every stage of the job that is not done yet; their results are in `context.result`.

    Raises:
        CancelledJobError: the job was asked to stop.
        BrainError: a stage failed; the stages before it keep their results.
    """
    for name, span in _spans(tuple(context.stages)).items():
        context.check_stop()
        if context.stages[name].status not in ("done", "skipped"):
            _run_one(context, STAGES[name], span)


def _run_one(context: JobContext, stage: Stage, span: tuple[float, float]) -> None:
    module = stage.load()
    report = replace(context.stages[stage.name], status="running", command=module.command(context))
    context.enter_stage(report, span)
    begun_s = time.monotonic()
    outcome = module.run(context)
    ended = replace(
        report,
        status="skipped" if outcome.skipped else "done",
        details=outcome.details,
        duration_s=round(time.monotonic() - begun_s, 3),
    )
    context.leave_stage(ended, outcome.result)


def _spans(names: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Share 0..1 out among the stages by their weights."""
    total = sum(STAGES[name].weight for name in names)
    spans, reached = {}, 0.0
    for name in names:
        stop = reached + STAGES[name].weight / total
        spans[name] = (reached, min(stop, 1.0))
        reached = stop
    return spans
