"""`/episodes/{id}/images/{name}`: one image of an episode, as the camera made it."""

from typing import Annotated

from fastapi import APIRouter, Header
from starlette.responses import Response

from brain_service.api.openapi_answers import answers
from brain_service.api.services import ServicesDep
from brain_service.episodes.images import read_image

__all__ = ["router"]

router = APIRouter(prefix="/episodes", tags=["episodes"])

_MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg"}
_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_ANSWERS = answers(404, 422, 500) | {
    200: {"description": "The file", "content": dict.fromkeys(_MEDIA_TYPES.values(), _PICTURE)},
    304: {"description": "The client has it already"},
}


@router.get("/{episode_id}/images/{name}", operation_id="read_image", response_class=Response, responses=_ANSWERS)
async def read_episode_image(
    episode_id: str,
    name: str,
    services: ServicesDep,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Return the PNG or JPEG that a step refers to as `images/{name}`; what has this name never changes."""
    data = await services.store.run(read_image, services.settings.episodes_dir, episode_id, name)
    tag = f'"{name.partition(".")[0]}"'
    headers = {"ETag": tag, "Cache-Control": "private, max-age=31536000, immutable"}
    if if_none_match is not None and _names(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    headers["X-Content-Type-Options"] = "nosniff"
    return Response(data, media_type=_MEDIA_TYPES[name.rpartition(".")[2]], headers=headers)


def _names(if_none_match: str, tag: str) -> bool:
    """Tell whether an `If-None-Match` header holds this tag (RFC 9110, section 13.1.2)."""
    return if_none_match.strip() == "*" or tag in (
        given.strip().removeprefix("W/") for given in if_none_match.split(",")
    )
