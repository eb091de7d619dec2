"""A whole episode in memory: columns of arrays over time, whichever file it came from."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from brain_service.spec import EpisodeSpec, Leaf

__all__ = ["Column", "Episode"]

Column = np.ndarray[Any, np.dtype[Any]] | list[str] | list[bytes]
"""One feature over an episode: `[T, *shape]` of the feature's dtype, T texts, or T images as PNG or JPEG files."""


@dataclass(frozen=True, slots=True)
class Episode:
    """T steps in time order. `action[i]` was chosen in `observation[i]`, `reward[i]` followed it.

    `end` is `terminated`, `truncated`, `recovered`, or None for a log that is still open. A terminated
    episode's last `is_terminal` is set even if only its end said so. `timestamp_ns` is 0 where a file of the
    seed has no time. `executed_action` is None if no step had one; steps without one repeat the commanded.
    """

    episode_id: str
    metadata: dict[str, Any]
    spec: EpisodeSpec
    observation: dict[str, Column]
    action: dict[str, Column]
    reward: Float32[np.ndarray, "T"]
    is_terminal: Bool[np.ndarray, "T"]
    timestamp_ns: Int64[np.ndarray, "T"]
    control_role: list[str]
    executed_action: dict[str, Column] | None
    final_observation: dict[str, Leaf] | None
    end: str | None

    def __len__(self) -> int:
        return len(self.control_role)
