"""A small bundle's parts, with no model behind them: for what concerns files and manifests only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from brain_service.export.bundle import GOLDEN, JAX_STEP, PARAMS, Golden, write_bundle
from brain_service.export.manifest import Manifest, Parity
from brain_service.spec import EpisodeSpec, Feature

DRAFT = Manifest(
    config={"sizes": [1, 2], "rate": 0.1},
    spec=EpisodeSpec(
        observation={
            "camera/level": Feature("uint8", (2,)),
            "name": Feature("text"),
            "state": Feature("float32", (3,)),
        },
        action={"command": Feature("float32", (2,))},
    ),
    action_low=(-1.0, -0.1),
    action_high=(1.0, 0.3),
    normalisation={"observation_mean": (0.1, 1e-30, 3.0, 0.0, 0.0)},
    carry={"fast": 4, "slow": 2},
    action_horizon=2,
    control_period_s=0.02,
    parity={"jax": Parity(1e-7, 1e-4)},
    source_run="run-1",
    evaluation={"mae": 0.25},
    created_ns=1_700_000_000_000_000_000,
)


def golden(steps: int = 3) -> Golden:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return rng.standard_normal(shape).astype(np.float32)

    return Golden(draw(steps, 5), draw(steps, 2), draw(steps), draw(steps), draw(steps, 2, 2))


def files() -> dict[str, bytes]:
    return {PARAMS: b"parameters" * 20, JAX_STEP: b"a compiled step", GOLDEN: golden().to_bytes()}


def write_sample(models_dir: Path, changes: Mapping[str, bytes] | None = None) -> Path:
    return models_dir / write_bundle(models_dir, DRAFT, files() | dict(changes or {}))
