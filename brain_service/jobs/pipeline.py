"""Runs a job's stages in order; stages that an earlier attempt finished are passed over."""

import time
from dataclasses import replace

from brain_service.jobs.context import JobContext, ParkedJob
from brain_service.jobs.job import Lane
from brain_service.jobs.params import PipelineParams
from brain_service.jobs.stages import STAGES, Stage

__all__ = ["run_stages"]

_LOOKING = ("health", "inventory")
"""Stages that change nothing: a dry run carries them out."""


def run_stages(context: JobContext, lane: Lane = "work") -> None:
    """Run the stages of the job that are not done yet; their results are in `context.result`.

    At a stage of another lane than this worker's the job is parked, to go on there at once.

    Raises:
        CancelledJobError: the job was asked to stop.
        ParkedJob: the job goes on later, or in another lane.
        BrainError: a stage failed; the stages before it keep their results.
    """
    if isinstance(context.params, PipelineParams) and context.params.dry_run:
        _rehearse(context)
        return
    for name, span in _spans(tuple(context.stages)).items():
        if context.stages[name].status not in ("done", "skipped"):
            if STAGES[name].lane != lane:
                raise ParkedJob(STAGES[name].lane, 0.0)
            # A run in the cloud does not stop by stopping here: the network's stages look for themselves.
            if lane == "work":
                context.check_stop()
            _run_one(context, STAGES[name], span, STAGES[name].load().command(context))


def _run_one(context: JobContext, stage: Stage, span: tuple[float, float], command: str | None) -> None:
    before = context.stages[stage.name]
    started_ns = before.started_ns if before.status == "running" else None
    report = replace(before, status="running", command=command, started_ns=started_ns or time.time_ns())
    context.enter_stage(report, span)
    begun_s = time.monotonic()
    outcome = stage.load().run(context)
    waited = started_ns is not None and started_ns < time.time_ns()
    duration_s = (time.time_ns() - started_ns) / 1e9 if waited and started_ns else time.monotonic() - begun_s
    ended = replace(
        context.stages[stage.name],
        status="skipped" if outcome.skipped else "done",
        details=outcome.details,
        duration_s=round(duration_s, 3),
    )
    context.leave_stage(ended, outcome.result)


def _rehearse(context: JobContext) -> None:
    """Carry out the stages that only look, and tell of each other one what would be run."""
    commands = _commands(context)
    for name, span in _spans(tuple(context.stages)).items():
        context.check_stop()
        if name in _LOOKING:
            _run_one(context, STAGES[name], span, commands[name])
        else:
            report = replace(context.stages[name], status="running", command=commands[name])
            context.enter_stage(report, span)
            context.leave_stage(replace(report, status="skipped", details="dry run: not carried out"), {})
    context.result["dry_run"] = True


def _commands(context: JobContext) -> dict[str, str | None]:
    """Return the stages' commands with names that say what an earlier stage would put in their place."""
    kept = context.result
    context.result = {
        "dataset": {"name": "episodes", "version": "NEW_VERSION"},
        "train": {"checkpoint": context.job.job_id},
        "run": {"output_dir": "RUN_FOLDER", "model_id": "NEW_MODEL"},
        "model_id": "NEW_MODEL",
    }
    try:
        return {name: STAGES[name].load().command(context) for name in context.stages}
    finally:
        context.result = kept


def _spans(names: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Share 0..1 out among the stages by their weights."""
    total = sum(STAGES[name].weight for name in names)
    spans, reached = {}, 0.0
    for name in names:
        stop = reached + STAGES[name].weight / total
        spans[name] = (reached, min(stop, 1.0))
        reached = stop
    return spans
