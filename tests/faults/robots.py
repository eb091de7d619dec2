"""What the robots of the fault tests do: every step's values follow from its episode and index.

So whoever reads a log after a fault knows what each step must hold, bit by bit, without having kept it.
"""

import functools
import random
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from brain_service.episodes.images import image_reference
from tests.pictures import picture

__all__ = ["body", "differs", "has_camera", "observation_size", "seen"]

_SIZES = (3, 40, 200)
_T0_NS = 1_700_000_000_000_000_000


def observation_size(episode_id: str) -> int:
    """Return how many numbers the episode's observation has: lines of half a sector up to several."""
    return _SIZES[zlib.crc32(episode_id.encode()) % len(_SIZES)]


def body(episode_id: str, index: int) -> dict[str, Any]:
    """Return the body of `POST /episodes/{id}/steps` for a step."""
    rng = random.Random(f"{episode_id}/{index}")
    state = [rng.uniform(-1, 1) for _ in range(observation_size(episode_id))]
    return {
        "step_index": index,
        "observation": {"state": state} | ({"camera": seen(index)} if has_camera(episode_id) else {}),
        "action": {"command": [rng.uniform(-1, 1), float(index)]},
        "reward": rng.uniform(-1, 1),
        "timestamp_ns": _T0_NS + index,
    }


def has_camera(episode_id: str) -> bool:
    """Tell whether the robot of an episode has a camera; then its steps go by msgpack."""
    return episode_id.startswith("camera")


@functools.lru_cache(maxsize=64)
def seen(index: int) -> bytes:
    """Return what a camera sees at a step: every picture twice in a row, of one to several sectors."""
    return picture(index // 2, height=16)


def _as_stored(values: Any) -> list[float]:
    """Return numbers as the log holds them: the shortest text of the nearest float32."""
    stored: list[float] = orjson.loads(
        orjson.dumps(np.asarray(values, np.float32), option=orjson.OPT_SERIALIZE_NUMPY)
    )
    return stored


def differs(record: Mapping[str, Any], episode_id: str, index: int) -> str | None:
    """Return what in a stored step's record is not as it was sent, None if every bit is."""
    sent = body(episode_id, index)
    found = {
        "step_index": record["step_metadata"]["step_index"] == index,
        "timestamp_ns": record["step_metadata"]["timestamp_ns"] == sent["timestamp_ns"],
        "observation": record["observation"] == _observation(sent["observation"]),
        "action": record["action"] == {"command": _as_stored(sent["action"]["command"])},
        "reward": _as_stored([record["reward"]]) == _as_stored([sent["reward"]]),
    }
    wrong = [name for name, same in found.items() if not same]
    return f"step {index} of {episode_id} has another {', '.join(wrong)}" if wrong else None


def _observation(sent: Mapping[str, Any]) -> dict[str, Any]:
    stored: dict[str, Any] = {"state": _as_stored(sent["state"])}
    if "camera" in sent:
        stored["camera"] = image_reference(sent["camera"])
    return stored
