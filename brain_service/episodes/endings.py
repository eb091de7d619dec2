"""The last line of a log, and whether ending an episode again repeats what it says."""

import time
from collections.abc import Mapping
from typing import Any

import orjson

from brain_service.episodes.answers import Ended, EndReason
from brain_service.episodes.header import EpisodeHeader
from brain_service.episodes.images import ImageStore, split_images
from brain_service.episodes.schema import nest
from brain_service.errors import ConflictError, InvalidError
from brain_service.spec import EpisodeSpec, check_values
from brain_service.trees import flatten

__all__ = ["end_record", "parse_reason", "require_same_end"]

_FIELD = "final_observation"
_REASONS: Mapping[str | None, EndReason | None] = {
    None: None,
    "terminated": "terminated",
    "truncated": "truncated",
}


def parse_reason(reason: str | None) -> EndReason | None:
    """Return a client's reason; None leaves it to the last step.

    Raises:
        InvalidError: it is another than `terminated` and `truncated`.
    """
    if reason not in _REASONS:
        raise InvalidError(f"reason {reason!r} is neither 'terminated' nor 'truncated'", field="reason")
    return _REASONS[reason]


def end_record(
    header: EpisodeHeader,
    spec: EpisodeSpec | None,
    steps: int,
    reason: str,
    final_observation: Mapping[str, Any] | None,
    images: ImageStore,
    max_image_bytes: int,
) -> dict[str, Any]:
    """Return the end record of an episode of `steps` steps; images of the final observation are stored.

    Raises:
        InvalidError: the final observation does not fit the spec, or there were no steps to have one.
        TooLargeError: an image is over its limit.
        UnavailableError: the medium refuses an image.
    """
    record: dict[str, Any] = {
        "type": "end",
        "reason": reason,
        "steps": steps,
        "ended_ns": time.time_ns(),
        "episode_id": header.episode_id,
    }
    if final_observation is not None:
        if spec is None:
            raise InvalidError("an episode without steps has no final observation", field=_FIELD)
        values = check_values(flatten(final_observation, _FIELD), spec.observation, _FIELD)
        named, found = images.name_images(values, spec, _FIELD, max_image_bytes)
        images.put_all(found)
        record[_FIELD] = nest(named)
    return record


def require_same_end(
    stored: Mapping[str, Any],
    reason: str | None,
    final_observation: Mapping[str, Any] | None,
    spec: EpisodeSpec | None,
) -> Ended:
    """Return the earlier end if this one repeats it; a reason or an observation left out always does.

    `stored` is the end record as the log has it.

    Raises:
        ConflictError: it ended for another reason or with another final observation.
        InvalidError: the final observation does not fit the spec.
    """
    episode_id = stored["episode_id"]
    if reason not in (None, stored["reason"]):
        raise ConflictError(
            f"episode {episode_id!r} has ended as {stored['reason']}, not {reason}", field="reason"
        )
    if final_observation is not None:
        if spec is None:
            raise InvalidError("an episode without steps has no final observation", field=_FIELD)
        values = check_values(flatten(final_observation, _FIELD), spec.observation, _FIELD)
        named, _ = split_images(values, spec)
        again = orjson.loads(orjson.dumps(nest(named), option=orjson.OPT_SERIALIZE_NUMPY))
        if again != stored.get(_FIELD):
            raise ConflictError(
                f"episode {episode_id!r} has ended with another final observation; a retry must repeat it",
                field=_FIELD,
            )
    return Ended(stored["steps"], stored["steps"] - 1, stored["reason"])
