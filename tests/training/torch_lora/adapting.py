"""A base, new episodes and settings with which adapters are trained in seconds."""

import hashlib
from pathlib import Path
from typing import Any

from brain_service.training.torch_lora.config import LoraConfig


def small(**settings: Any) -> LoraConfig:
    """Return settings that fine-tune in seconds."""
    chosen: dict[str, Any] = {
        "max_steps": 6,
        "batch_size": 4,
        "sequence_length": 8,
        "min_episodes": 8,
        "checkpoint_every": 2,
        "evaluate_every": 3,
        "patience": 0,
        "log_every": 1,
        "rank": 2,
        "lora_layers": ("heads.*",),
        "learning_rate": 1e-2,
    }
    return LoraConfig(**(chosen | settings))


def digest(folder: Path) -> str:
    """Return a hash over the names and bytes of all files in a folder."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(folder)}\n".encode())
        found.update(path.read_bytes())
    return found.hexdigest()
