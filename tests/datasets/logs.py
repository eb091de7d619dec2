"""Capture logs written line by line: fast enough for thousands, and free to be wrong in one place."""

from pathlib import Path
from typing import Any

import numpy as np

from brain_service.episodes.log_format import encode_line


def header(episode_id: str, state: int = 3, **members: Any) -> dict[str, Any]:
    """The header of an episode whose observation has `state` floats."""
    features = {
        "observation": {"state": {"dtype": "float32", "shape": [state]}},
        "action": {"command": {"dtype": "float32", "shape": [2]}},
    }
    metadata: dict[str, object] = {
        "environment_id": "bench",
        "xr_mode": "trainer",
        "control_role": "expert",
        "tags": [],
        "robot_id": None,
        "language_instruction": "reach the puck",
    }
    return {
        "type": "episode",
        "schema_version": "1.1",
        "episode_id": episode_id,
        "created_ns": 1_700_000_000_000_000_000,
        "durability": None,
        "metadata": metadata,
        "features": features,
    } | members


def step(index: int, rng: np.random.Generator, state: int = 3, **members: Any) -> dict[str, Any]:
    """A step of random values."""
    return {
        "type": "step",
        "observation": {"state": rng.standard_normal(state).astype(np.float32)},
        "action": {"command": rng.standard_normal(2).astype(np.float32)},
        "reward": np.float32(rng.standard_normal()),
        "is_terminal": False,
        "step_metadata": {
            "timestamp_ns": 1_700_000_000_000_000_000 + index * 50_000_000,
            "step_index": index,
            "control_role": "expert",
        },
        "episode_id": "e",
    } | members


def end(reason: str = "truncated") -> dict[str, Any]:
    """The last line."""
    return {"type": "end", "reason": reason, "steps": 0}


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write records as checksummed lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(map(encode_line, records)))
    return path


def write_log(path: Path, episode_id: str | None = None, steps: int = 3, *, seed: int = 0, state: int = 3) -> Path:
    """Write an ended episode."""
    rng = np.random.default_rng(seed)
    records = [header(episode_id or path.stem, state), *(step(n, rng, state) for n in range(steps)), end()]
    return write_lines(path, records)
