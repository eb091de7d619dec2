"""A small dataset of a task that can be learned in seconds, and settings to learn it with."""

import json
from pathlib import Path

import jax
import numpy as np

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.training.checkpointing import load_checkpoint
from brain_service.training.config import TrainConfig

TINY = {
    "d_e": 16,
    "d_s": 8,
    "d_w": 8,
    "d_p": 4,
    "d_c": 8,
    "d_k": 4,
    "d_v": 4,
    "d_h": 16,
    "cms_sizes": (2, 2),
    "cms_periods": (1, 4),
    "cms_decays": (0.1, 0.05),
}


def tiny(**settings: object) -> TrainConfig:
    """Return settings that train in seconds."""
    chosen = {
        "steps": 6,
        "batch_size": 4,
        "sequence_length": 8,
        "warmup_steps": 2,
        "checkpoint_every": 2,
        "model": TINY,
    }
    return TrainConfig(**(chosen | settings))  # type: ignore[arg-type]


def record_episodes(
    folder: Path, count: int = 8, *, role: str = "expert", length: int = 20, observation: str = "state"
) -> Path:
    """Write seed-style logs of a linear controller: action = K observation, observations random in [-1, 1]."""
    folder.mkdir(parents=True, exist_ok=True)
    gain = np.asarray([[0.8, -0.5, 0.0], [0.0, 0.3, 1.5]])
    rng = np.random.default_rng(7)
    for index in range(count):
        lines = []
        for t in range(length + index % 3):
            seen = rng.uniform(-1, 1, 3)
            lines.append(
                {
                    "observation": {observation: seen.tolist()},
                    "action": {"command": (gain @ seen).tolist()},
                    "reward": float(-abs(seen[0])),
                    "is_terminal": t == length + index % 3 - 1,
                    "step_metadata": {
                        "timestamp_ns": 10**18 + index * 10**12 + t * 20_000_000,
                        "step_index": t,
                        "control_role": role,
                    },
                }
            )
        (folder / f"episode-{index:03d}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def make_dataset(folder: Path, **how: object) -> Path:
    """Record and convert; return the dataset version's folder."""
    recorded = record_episodes(folder / "episodes", **how)  # type: ignore[arg-type]
    return convert_directory_to_tfrecord(recorded, folder / "datasets", val_fraction=0.25).dataset_dir


def same_parameters(left: Path, right: Path, step: int | None = None) -> bool:
    """Whether two runs' checkpoints hold the same parameters, bit by bit."""
    pair = [jax.tree.leaves(load_checkpoint(folder, step).params) for folder in (left, right)]
    return all(np.array_equal(a, b) for a, b in zip(*pair, strict=True))
