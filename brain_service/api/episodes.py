"""`/episodes`: create, append, end, list, read, delete. The blocking work runs on the store's own thread."""

from typing import Annotated, Any, Literal

import msgspec
import orjson
from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response

from brain_service.api.bodies import JsonResponse, decode, read_body, read_object
from brain_service.api.episode_query import filters_of
from brain_service.api.openapi import APPENDED, CREATE, CREATED, END, ENDED, IDEMPOTENCY_KEY, STEPS, STEPS_PAGE
from brain_service.api.openapi import body as body_of
from brain_service.api.openapi_answers import answers
from brain_service.api.services import ServicesDep
from brain_service.episodes.index import Filters
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import NotFoundError

__all__ = ["router"]

router = APIRouter(prefix="/episodes", tags=["episodes"])


class EndBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `/episodes/{id}/end`: why it ended, and what was observed after the last action."""

    reason: Literal["terminated", "truncated"] | None = None
    final_observation: dict[str, Any] | None = None


@router.post(
    "",
    status_code=201,
    operation_id="create_episode",
    openapi_extra=body_of({"application/json": CREATE}, required=False),
    responses=answers(400, 409, 413, 422, 429, success=201, schema=CREATED, location=True),
)
async def create_episode(
    request: Request,
    services: ServicesDep,
    idempotency_key: Annotated[
        str | None, Header(pattern=IDEMPOTENCY_KEY, description="1-255 characters of ASCII")
    ] = None,
) -> JsonResponse:
    """Open an episode; the answer's `episode_id` and Location name it.

    The same body under the same `Idempotency-Key` gives the same answer again; another body is a 409.
    """
    body = read_object(await read_body(request, services.settings.capture.max_step_bytes))
    header = await services.store.run(services.store.create, body, idempotency_key)
    return JsonResponse(
        {"episode_id": header.episode_id},
        status_code=201,
        headers={"Location": f"/episodes/{header.episode_id}"},
    )


@router.get("", operation_id="list_episodes", responses=answers(422))
async def list_episodes(
    services: ServicesDep,
    filters: Annotated[Filters, Depends(filters_of)],
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: str | None = None,
) -> JsonResponse:
    """List at most `limit` episodes, newest first; pass `next_cursor` back as `cursor` for the next page.

    Every filter must hold. No page repeats or misses an episode for others that come and go meanwhile. Times in
    the answer are int64 nanoseconds since the epoch; `size_bytes` is what deleting the episode would free.
    """
    items, following = await services.store.run(services.store.list, limit, cursor, filters)
    return JsonResponse({"episodes": items, "next_cursor": following})


@router.get("/{episode_id}", operation_id="get_episode", responses=answers(404, 422, 500))
async def get_episode(episode_id: str, services: ServicesDep) -> JsonResponse:
    """Tell an episode's state, length, metadata and feature spec."""
    return JsonResponse(await services.store.run(services.store.get, episode_id))


@router.delete(
    "/{episode_id}", status_code=204, operation_id="delete_episode", responses=answers(404, 409, 422, 500)
)
async def delete_episode(episode_id: str, services: ServicesDep) -> Response:
    """Delete an ended episode."""
    await services.store.run(services.store.delete, episode_id)
    return Response(status_code=204)


@router.get("/{episode_id}/steps", operation_id="read_steps", responses=answers(404, 422, 500, schema=STEPS_PAGE))
async def read_steps(
    episode_id: str,
    services: ServicesDep,
    start: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Read at most `limit` steps from index `start`, as they stand in the log.

    Where they would be longer than `capture.max_page_bytes` together a page ends sooner, behind the first at the
    earliest. Go on with `start` behind the last step that came; a page without steps is the end of what there is.
    """
    document = await services.store.run(_page, services.store, episode_id, start, limit)
    return Response(document, media_type="application/json")


def _page(store: EpisodeStore, episode_id: str, start: int, limit: int) -> bytes:
    """Return the JSON document of a page; the steps are JSON already.

    Raises:
        BrainError: as `EpisodeStore.page`.
    """
    steps = b",".join(store.page(episode_id, start, limit))
    return b'{"episode_id":%b,"start":%d,"steps":[%b]}' % (orjson.dumps(episode_id), start, steps)


@router.post(
    "/{episode_id}/steps",
    operation_id="append_steps",
    openapi_extra=body_of(STEPS, required=True),
    responses=answers(400, 404, 409, 413, 415, 422, 429, schema=APPENDED),
)
async def append_steps(episode_id: str) -> Response:
    """Append one step, an array of steps, or NDJSON; all of them or none.

    The answer means accepted: a kill of the daemon no longer loses the steps. `durable_through` is the highest
    step index that a power cut no longer loses either. A repeated step with the same body is harmless.

    `WS /episodes/{episode_id}/stream` takes the same bodies as messages (text: JSON or NDJSON, binary: msgpack)
    and answers each, or several at once, with the same document; an error is the problem document before a close
    with code 4000 + its status.
    """
    # `CaptureTransport` has answered every request of this path; what is left is no spelling of it.
    raise NotFoundError(f"no episode {episode_id!r} under this spelling of the path")


@router.post(
    "/{episode_id}/end",
    operation_id="end_episode",
    openapi_extra=body_of({"application/json": END}, required=False),
    responses=answers(400, 404, 409, 413, 422, 500, schema=ENDED),
)
async def end_episode(episode_id: str, request: Request, services: ServicesDep) -> JsonResponse:
    """End an episode; it is on the medium before the answer."""
    body = await read_body(request, services.settings.capture.max_step_bytes)
    end = decode(body or b"{}", EndBody)
    await services.recorder.finish(episode_id)
    done = await services.store.run(services.store.end, episode_id, end.reason, end.final_observation)
    return JsonResponse({"steps": done.steps, "durable_through": done.durable_through})
