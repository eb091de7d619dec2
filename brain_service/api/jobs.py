"""Jobs: POST returns 202 and a Location at once; the work runs in processes of its own."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Query, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from brain_service.api.bodies import JsonResponse, read_body, read_object
from brain_service.api.openapi_jobs import JOB, JOB_QUEUED
from brain_service.api.probing import in_probe_thread
from brain_service.api.services import Services, ServicesDep
from brain_service.errors import InvalidError, NotFoundError
from brain_service.jobs.events import read_events
from brain_service.jobs.job import ENDED
from brain_service.jobs.kinds import KINDS, parse_params, require_target
from brain_service.jobs.params import TrainParams
from brain_service.jobs.table import JobTable
from brain_service.jobs.trainer import UNDECIDED, choose_trainer
from brain_service.settings import Settings

__all__ = ["router"]

router = APIRouter(tags=["jobs"])

FOLLOW_INTERVAL_S = 0.25
KEEP_ALIVE_S = 15.0
LOG_TAIL_BYTES = 1 << 20
DECIDE_WITHIN_S = 2.0
"""A client waits 5 s for an answer where its author did not think of it (httpx)."""

_A_JOB: dict[int | str, dict[str, Any]] = {
    200: {"description": "The job", "content": {"application/json": {"schema": JOB}}}
}


async def _submit(kind: str, request: Request, services: Services, key: str | None) -> JsonResponse:
    body = read_object(await read_body(request, services.settings.capture.max_step_bytes))
    params = parse_params(kind, body)
    require_target(params, services.settings.cloud)
    trainer = await _trainer(params, services.settings) if isinstance(params, TrainParams) else None
    job = await asyncio.to_thread(services.jobs.create, kind, body, idempotency_key=key, trainer=trainer)
    headers = {"Location": f"/jobs/{job.job_id}", "Retry-After": "1"}
    return JsonResponse(job.to_json(), status_code=202, headers=headers)


async def _trainer(params: TrainParams, settings: Settings) -> Mapping[str, Any]:
    """Return who trains; where the runtimes take their time, the job's worker decides it.

    PyTorch is waited for where it was asked for: most machines do not have it, and then there is no job.
    """
    asked = asyncio.ensure_future(in_probe_thread(choose_trainer, params, settings))
    await asyncio.wait({asked}, timeout=None if params.trainer == "pytorch" else DECIDE_WITHIN_S)
    if asked.done():
        return asked.result().to_json()
    asked.add_done_callback(asyncio.Future.exception)  # nobody else looks at it
    return UNDECIDED


def _submitter(kind: str) -> Callable[..., Coroutine[Any, Any, JsonResponse]]:
    async def submit(
        request: Request, services: ServicesDep, idempotency_key: Annotated[str | None, Header()] = None
    ) -> JsonResponse:
        return await _submit(kind, request, services, idempotency_key)

    submit.__doc__ = KINDS[kind].summary
    return submit


for _kind, _described in sorted(KINDS.items()):
    _schema = {"content": {"application/json": {"schema": _described.params.model_json_schema()}}}
    _operation = _kind.replace("-", "_")
    router.post(
        f"/{_kind}",
        status_code=202,
        operation_id=_operation,
        openapi_extra={"requestBody": _schema},
        responses={202: JOB_QUEUED},
    )(_submitter(_kind))


@router.get("/train", operation_id="latest_train", responses=_A_JOB)
async def latest_train(services: ServicesDep) -> JsonResponse:
    """Return the latest run that trained: a `train` or a `pipeline` job.

    Raises:
        NotFoundError: there was none yet.
    """
    job = await asyncio.to_thread(services.jobs.latest, ("train", "pipeline"))
    if job is None:
        raise NotFoundError("nothing was trained yet; POST /train or POST /pipeline starts a run")
    return JsonResponse(job.to_json())


@router.get("/jobs", operation_id="list_jobs")
async def list_jobs(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: str | None = None,
    kind: str | None = None,
    state: str | None = None,
) -> JsonResponse:
    """List jobs, newest first; pass `next_cursor` back as `cursor` for the next page."""
    page = await asyncio.to_thread(services.jobs.list, limit, cursor, kind, state)
    return JsonResponse({"jobs": [job.to_json() for job in page.jobs], "next_cursor": page.next_cursor})


@router.get("/jobs/{job_id}", operation_id="get_job", responses=_A_JOB)
async def get_job(job_id: str, services: ServicesDep) -> JsonResponse:
    """Return a job's state, progress, stages, result or error."""
    return JsonResponse((await asyncio.to_thread(services.jobs.get, job_id)).to_json())


@router.delete("/jobs/{job_id}", status_code=202, operation_id="cancel_job")
async def cancel_job(job_id: str, services: ServicesDep) -> JsonResponse:
    """Ask a job to stop; one that runs is gone within seconds, and what it had finished stays."""
    return JsonResponse((await asyncio.to_thread(services.jobs.cancel, job_id)).to_json(), status_code=202)


@router.get("/jobs/{job_id}/log", operation_id="job_log", response_class=PlainTextResponse)
async def job_log(job_id: str, services: ServicesDep) -> Response:
    """Return what the job's process printed, at most its last mebibyte, as text."""
    job = await asyncio.to_thread(services.jobs.get, job_id)
    text = await asyncio.to_thread(_read_tail, services.settings.jobs_dir / job.job_id / "log.txt")
    return Response(text, media_type="text/plain; charset=utf-8")


@router.get("/jobs/{job_id}/events", operation_id="job_events")
async def job_events(
    job_id: str, services: ServicesDep, last_event_id: Annotated[str | None, Header()] = None
) -> StreamingResponse:
    """Stream the job's events (server-sent events) until it has ended; the last one is `end` with the job.

    A client that lost the connection sends `Last-Event-ID`, a byte offset, and misses nothing.

    Raises:
        NotFoundError: no such job.
        InvalidError: `Last-Event-ID` is none that this stream gave out.
    """
    job = await asyncio.to_thread(services.jobs.get, job_id)
    offset = last_event_id or "0"
    if not (offset.isascii() and offset.isdigit() and len(offset) < 19):
        raise InvalidError(f"Last-Event-ID {offset!r} is none that this stream gave out", field="Last-Event-ID")
    path = services.settings.jobs_dir / job.job_id / "events.jsonl"
    return StreamingResponse(
        _follow(path, services.jobs, job_id, int(offset)),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store"},
    )


def _read_tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LOG_TAIL_BYTES))
            return file.read()
    except FileNotFoundError:
        return b""  # queued: no process has printed anything yet


async def _follow(path: Path, jobs: JobTable, job_id: str, offset: int) -> AsyncIterator[bytes]:
    spoke_s = time.monotonic()
    while True:
        # Asked before reading: what was written before the end is then never missed.
        job = await asyncio.to_thread(jobs.get, job_id)
        while events := await asyncio.to_thread(read_events, path, offset):
            for event in events:
                offset = event.offset
                yield _frame(str(event.data.get("kind", "message")), event.data, offset)
            spoke_s = time.monotonic()
        if job.state in ENDED:
            yield _frame("end", job.to_json(), offset)
            return
        if time.monotonic() - spoke_s > KEEP_ALIVE_S:
            spoke_s = time.monotonic()
            yield b": still running\n\n"
        await asyncio.sleep(FOLLOW_INTERVAL_S)


def _frame(name: str, data: object, offset: int) -> bytes:
    return b"event: %s\nid: %d\ndata: %s\n\n" % (name.encode(), offset, orjson.dumps(data))
