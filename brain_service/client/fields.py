"""What describes an episode when it is recorded, and what finds it again."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from brain_service.client.recorder import new_episode_id
from brain_service.client.wire import JsonObject

__all__ = ["EpisodeFields", "EpisodeFilters", "create_body"]


class EpisodeFields(TypedDict, total=False):
    """What `record` takes; all optional.

    `features` declares the shapes, `{"observation": {path: {"dtype", "shape"}}, "action": {...}}`; without it the
    first step fixes them. `durability` is `interval` (the daemon's default: a power cut loses at most 0.2 s there,
    and this client resends those), `step` or `episode`. `metadata` holds the caller's own names.
    """

    episode_id: str
    environment_id: str
    xr_mode: str
    control_role: Literal["expert", "intervention", "policy", "human_teleop", "human_supervisor"]
    tags: Sequence[str]
    robot_id: str
    language_instruction: str
    metadata: Mapping[str, Any]
    features: Mapping[str, Any]
    durability: Literal["interval", "step", "episode"]
    safety: Mapping[str, Any]
    share: Mapping[str, Any]


class EpisodeFilters(TypedDict, total=False):
    """What `episodes` filters by; all optional, all must hold. Times are int64 ns or RFC 3339 text."""

    tag: Sequence[str]
    robot_id: str
    environment_id: str
    control_role: str
    xr_mode: str
    state: Literal["open", "terminated", "truncated", "recovered"]
    created_after: int | str
    created_before: int | str


def create_body(fields: EpisodeFields) -> JsonObject:
    """Return the body of `POST /episodes`, with an id of our own making where none is given."""
    given = {name: value for name, value in fields.items() if value is not None}
    return {"episode_id": new_episode_id()} | given
