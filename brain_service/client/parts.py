"""The episodes that hold one recording: mostly one; another where the daemon closed it while we were cut off.

Part 2 of episode `x` is the episode `x-part2`, part 3 is `x-part3`; each names the one before it under `continues`
in its metadata. The names follow from the first, so that a client that is killed in between, and the next one that
resends its spool, make the same episode and not two.
"""

import hashlib
from dataclasses import dataclass

from brain_service.client.wire import JsonObject

__all__ = ["Ended", "part_body", "part_id", "part_ids"]

STEM_CHARS = 100  # the daemon takes ids of up to 128


@dataclass(frozen=True, slots=True)
class Ended:
    """How a recording ended at the daemon: its steps, all on the medium, and `terminated` or `truncated`.

    `recovered` is how the daemon ends an episode that nobody went on with after its restart. `episode_ids` are the
    episodes that hold the steps, in their order; more than one where the daemon did that amid the recording.
    """

    steps: int
    durable_through: int
    reason: str
    episode_ids: tuple[str, ...]


def part_id(first_id: str, number: int) -> str:
    """Return the id of a recording's part (1, 2, ...), given that of its first."""
    if number == 1:
        return first_id
    stem = first_id
    if len(stem) > STEM_CHARS:
        stem = f"{stem[: STEM_CHARS - 17]}-{hashlib.sha256(stem.encode()).hexdigest()[:16]}"
    return f"{stem}-part{number}"


def part_ids(first_id: str, count: int) -> tuple[str, ...]:
    """Return the ids of a recording's first `count` parts."""
    return tuple(part_id(first_id, number) for number in range(1, count + 1))


def part_body(first_body: JsonObject, number: int) -> JsonObject:
    """Return the body that creates a part: that of the first but for the id and `metadata/continues`."""
    if number == 1:
        return first_body
    first_id = first_body["episode_id"]
    metadata = {**(first_body.get("metadata") or {}), "continues": part_id(first_id, number - 1)}
    return first_body | {"episode_id": part_id(first_id, number), "metadata": metadata}
