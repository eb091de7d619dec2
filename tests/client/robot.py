"""A toy robot's steps, and what the daemon must have of them in the end."""

from typing import Any

import numpy as np
import numpy.typing as npt

from brain_service.client import BrainClient

JOINTS, MOTORS = 5, 3


def observation(index: int) -> dict[str, Any]:
    """Return what the robot sensed at a step; its values tell the index."""
    joints: npt.NDArray[np.float32] = np.sin(np.arange(JOINTS, dtype=np.float32) + index)
    return {"arm": {"joints": joints}, "holding": np.bool_(index % 2), "ticks": np.int64(2**40 + index)}


def action(index: int) -> dict[str, Any]:
    """Return what it was commanded at a step."""
    return {"command": np.full(MOTORS, index / 7, np.float32)}


def assert_recorded(client: BrainClient, episode_id: str, count: int, first: int = 0) -> None:
    """Hold what the daemon has against what was logged from step `first` on: every step once, in order."""
    records = list(client.steps(episode_id))
    assert [record["step_metadata"]["step_index"] for record in records] == list(range(count))
    for index, record in enumerate(records, first):
        expected = observation(index)
        np.testing.assert_array_equal(record["observation"]["arm"]["joints"], expected["arm"]["joints"])
        assert record["observation"]["holding"] == expected["holding"]
        assert record["observation"]["ticks"] == expected["ticks"]
        np.testing.assert_array_equal(record["action"]["command"], action(index)["command"])
        assert record["reward"] == index
