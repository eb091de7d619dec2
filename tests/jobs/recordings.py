"""Recordings for the tests: seed-style `.jsonl` episodes of a small robot, written without our own logger."""

import json
import random
from pathlib import Path


def write_episodes(folder: Path, count: int, steps: int = 20, *, seed: int = 0) -> None:
    """Write `count` episodes: two observed numbers, and an action that a policy can learn from them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for number in range(count):
        lines = []
        position, goal = rng.uniform(-1, 1), rng.uniform(-1, 1)
        for index in range(steps):
            command = max(-1.0, min(1.0, 2 * (goal - position)))
            lines.append(
                {
                    "observation": {"state": [position, goal]},
                    "action": {"command": [command]},
                    "reward": -abs(goal - position),
                    "is_terminal": index == steps - 1,
                    "step_metadata": {"timestamp_ns": 1_700_000_000_000_000_000 + index * 20_000_000},
                }
            )
            position += 0.1 * command
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / f"episode-{seed}-{number:05d}.jsonl").write_text(text)
