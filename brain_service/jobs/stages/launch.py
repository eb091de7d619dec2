"""Stage: a run of `cloud_trainer` on other capacity, watched until it has made its bundle.

Each turn of this stage looks once and acts at most once, then the job is parked: whatever dies here in between,
the run goes on, and the next turn takes it up as it finds it.
"""

import contextlib
import json
import shlex
from typing import Any

from brain_service.cloud.launchers import RunRequest
from brain_service.cloud.plans import estimate, look_up
from brain_service.cloud.runs import CloudRuns, RunView
from brain_service.datasets.dataset import open_dataset
from brain_service.errors import BrainError, CancelledJobError, InvalidError, NotFoundError
from brain_service.jobs.context import JobContext
from brain_service.jobs.params import TrainParams
from brain_service.jobs.references import dataset_folder, job_dataset, run_id_of
from brain_service.jobs.stages import Outcome
from brain_service.jobs.stages.upload import FOLDER
from brain_service.spec import vector_size

__all__ = ["command", "run"]

# The defaults of `python -m cloud_trainer`, for the estimate of what the request leaves out.
STEPS, BATCH_SIZE, SEQUENCE_LENGTH = 10_000, 256, 64
CHOICES = (
    *(("mode", "--mode"), ("steps", "--num-steps"), ("batch_size", "--batch-size")),
    *(("sequence_length", "--sequence-length"), ("learning_rate", "--learning-rate"), ("seed", "--seed")),
    *(("checkpoint_every", "--checkpoint-every"),),
)


def command(context: JobContext) -> str:
    """Return the run's own command line."""
    return shlex.join(["python", "-m", "cloud_trainer", *_arguments(context)[0]])


def run(context: JobContext) -> Outcome:
    """See to the run: plan and ask for capacity at first, then look how it goes; cancelled, give it back.

    Raises:
        ParkedJob: the run is not over.
        CancelledJobError: the job was asked to stop, and nothing bills any more.
        InvalidError: the run would not fit its chips, or cost more than is allowed; nothing was asked for.
        BrainError: the run failed; its own error where it left one.
    """
    settings, request = context.settings, _request(context)
    opened = CloudRuns(settings.database, settings.cloud, background=settings.jobs.background)
    with contextlib.closing(opened) as runs:
        if context.should_stop():
            raise _stopped(context, runs, request.run_id)
        if _view(runs, request.run_id) is None:
            _require_affordable(context, request)
            runs.begin(request)
        view = runs.advance(request.run_id)
    if view.bills and view.state in ("done", "failed", "stopped"):
        raise context.parked(settings.cloud.poll_interval_s, f"{view.state}; what bills is being stopped")
    if view.state == "done" and view.status is not None:
        result = {
            "run_id": request.run_id,
            "output_dir": request.output_dir,
            "model_id": view.status.model_id,
            "steps": view.status.steps,
            "attempts": view.attempt,
            "cost_usd": round(view.cost_usd, 4),
            "goodput": dict(view.status.goodput),
            "evaluation": view.status.evaluation,
        }
        return Outcome(f"{view.status.steps} steps in {view.attempt} attempts: {view.detail}", {"run": result})
    if view.state in ("failed", "stopped"):
        problem = dict(view.error or {})
        raise BrainError(str(problem.get("detail") or view.detail), run_id=request.run_id)
    _tell(context, view)
    raise context.parked(settings.cloud.poll_interval_s, view.detail)


def _view(runs: CloudRuns, run_id: str) -> RunView | None:
    try:
        return runs.view(run_id)
    except NotFoundError:
        return None


def _stopped(context: JobContext, runs: CloudRuns, run_id: str) -> Exception:
    """Stop the run, and return what ends this turn: the job's end once nothing bills, else a wait."""
    view = _view(runs, run_id)
    if view is not None:
        # First: where the service does not answer, the next calls take their time.
        context.tell(f"stopping: {view.capacity or 'what may have been asked for'}")
        view = runs.stop(run_id)
        if view.bills:
            view = runs.advance(run_id)
        if view.bills:
            return context.parked(context.settings.cloud.poll_interval_s, f"stopping: {view.detail}")
    return CancelledJobError(f"job {context.job.job_id} was asked to stop")


def _tell(context: JobContext, view: RunView) -> None:
    status = view.status
    if status is not None and status.steps:
        values: dict[str, Any] = {"step": status.step, "steps": status.steps, "cost_usd": view.cost_usd}
        values |= {"loss": status.loss} if status.loss is not None else {}
        values |= {"steps_per_s": status.steps_per_s} if status.steps_per_s is not None else {}
        context.report(status.step / status.steps, **values)


def _arguments(context: JobContext) -> tuple[list[str], str]:
    """Return what `python -m cloud_trainer` is told, and the output directory among it."""
    params, cloud = context.params, context.settings.cloud
    assert isinstance(params, TrainParams)
    run_id = run_id_of(context.job.job_id)
    if params.target == "process":
        data_path = str(dataset_folder(context.settings, context.result))
        output_dir = str(context.settings.data_dir / "runs" / run_id)
    else:
        dataset = context.result["dataset"]
        data_path = f"gs://{cloud.bucket}/{cloud.prefix}/{FOLDER}/{dataset['name']}/{dataset['version']}"
        output_dir = f"gs://{cloud.bucket}/{cloud.prefix}/runs/{run_id}"
    words = ["--data-path", data_path, "--output-dir", output_dir, "--run-id", run_id, "--preset", params.preset]
    for name, flag in CHOICES:
        if (value := getattr(params, name)) is not None:
            words += [flag, str(value)]
    for name in ("image", "image_size"):
        if (value := getattr(params, name)) is not None:
            words += ["--set", f"{name}={json.dumps(value)}"]
    if params.target != "process":
        words += ["--topology", params.topology or cloud.topology]
    return words, output_dir


def _request(context: JobContext) -> RunRequest:
    params, cloud = context.params, context.settings.cloud
    assert isinstance(params, TrainParams)
    assert params.target != "local"
    words, output_dir = _arguments(context)
    topology = params.topology or cloud.topology
    if params.target != "process" and _planned(context, topology) is None:
        words += ["--plan"]
    return RunRequest(
        run_id=run_id_of(context.job.job_id),
        target=params.target,
        arguments=tuple(words),
        output_dir=output_dir,
        topology=topology,
        spot=cloud.spot if params.spot is None else params.spot,
        max_run_s=cloud.max_run_s,
        max_wait_s=cloud.max_wait_s,
    )


def _planned(context: JobContext, topology: str) -> Any:
    """Return the shipped plan that covers this run, or None: the run then plans before it trains."""
    params = context.params
    assert isinstance(params, TrainParams)
    spec = open_dataset(job_dataset(context.settings, context.result)).spec
    return look_up(
        preset=params.preset,
        batch_size=params.batch_size or BATCH_SIZE,
        sequence_length=params.sequence_length or SEQUENCE_LENGTH,
        topology=topology,
        obs_dim=vector_size(spec.observation),
        action_dim=vector_size(spec.action),
    )


def _require_affordable(context: JobContext, request: RunRequest) -> None:
    params, cloud = context.params, context.settings.cloud
    assert isinstance(params, TrainParams)
    plan = _planned(context, request.topology) if request.target != "process" else None
    if plan is None:
        return
    if not plan.fits:
        raise InvalidError(
            f"preset {params.preset!r} with this batch does not fit {request.topology}: {plan}; use a smaller "
            "batch_size or a larger topology (`cloud-trainer plan` compares them)",
            field="topology",
        )
    cost_usd = estimate(plan, params.steps or STEPS, spot=request.spot).usd
    if cost_usd > cloud.max_cost_usd:
        raise InvalidError(
            f"the run would cost about {cost_usd:.2f} USD, more than cloud.max_cost_usd {cloud.max_cost_usd:g}; "
            "use fewer steps or a smaller topology, or raise the setting",
            field="steps",
        )
