"""What seeing costs: a worker's step of a model with a 64 x 64 image encoder beside the same model without one.

    python -m tests.bench bench_images

Each backend in a process of its own, with the environment of its worker; the two models' steps are timed in turns,
so that what else the machine does slows both. Decoding and shrinking of a 480 x 640 JPEG stand beside the step.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from brain_service.export.bundle import Bundle
from brain_service.inference.arena import Layout
from brain_service.inference.backends import BACKENDS
from brain_service.pixels import ImageInput
from tests.bench.rows import Row

OBSERVATION, ACTION, SIDE = 16, 7, 64
PRESET = "pi5_optimized"
WARM_UP, ROUNDS, SAMPLES = 30, 20, 25


def measure() -> list[Row]:
    """Measure and return the rows."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        _child("export", folder, "", {"JAX_PLATFORMS": "cpu"})
        for backend in ("jax-cpu", "onnx-cpu"):
            found = _child("steps", folder, backend, dict(BACKENDS[backend].environment))
            name = f"step with a {SIDE} x {SIDE} x 3 image, {PRESET}, {backend}, p50"
            rows.append(Row(name, found["seeing"], "us", "the same without", found["blind"]))
    rows.append(_decoding())
    return rows


def _decoding() -> Row:
    from tests.pictures import picture

    image = ImageInput("camera", (480, 640, 3), (60, 80, 3))
    file = picture(0, "jpeg", 480, 640)
    small = ImageInput("camera", (SIDE, SIDE, 3), (SIDE, SIDE, 3))
    near = picture(0, "jpeg", SIDE, SIDE)
    large_us = float(np.median(_samples_us(lambda: image.pixels(file), SAMPLES)))
    small_us = float(np.median(_samples_us(lambda: small.pixels(near), SAMPLES)))
    return Row("decoding and shrinking a JPEG, 480 x 640 to 60 x 80", large_us, "us", "64 x 64 as it is", small_us)


def _child(task: str, folder: str, backend: str, environment: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.bench_images", task, folder, backend]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _export(folder: Path) -> dict[str, float]:
    import jax

    from brain_service.export.jax_step import PolicySource, export_policy
    from brain_service.model.config import PRESETS
    from brain_service.model.core import init_params
    from brain_service.spec import EpisodeSpec, Feature
    from brain_service.training.normalisation import Normaliser

    normaliser = Normaliser(
        observation_mean=np.zeros(OBSERVATION, np.float32),
        observation_std=np.ones(OBSERVATION, np.float32),
        reward_mean=np.zeros(1, np.float32),
        reward_std=np.ones(1, np.float32),
        action_low=-np.ones(ACTION, np.float32),
        action_high=np.ones(ACTION, np.float32),
    )
    for name, image in (("blind", None), ("seeing", ImageInput("camera", (SIDE, SIDE, 3), (SIDE, SIDE, 3)))):
        config = PRESETS[PRESET](obs_dim=OBSERVATION, action_dim=ACTION, image_shape=image.shape if image else ())
        observed = {"state": Feature("float32", (OBSERVATION,))}
        if image is not None:
            observed["camera"] = Feature("image", image.source)
        spec = EpisodeSpec(observed, {"arm": Feature("float32", (ACTION,))})
        params = init_params(config, jax.random.key(0))
        source = PolicySource(config, params, normaliser, spec, None, image=image)
        export_policy(source, folder / name, forms=("jax", "onnx"))
    return {}


def _steps(folder: Path, backend: str) -> dict[str, float]:
    load = importlib.import_module(BACKENDS[backend].module).load
    rng = np.random.default_rng(0)
    runs: dict[str, Callable[[], Any]] = {}
    for name in ("blind", "seeing"):
        bundle = Bundle.open(next((folder / name).iterdir()))
        layout = Layout.of(bundle.manifest)
        policy = load(bundle, layout, folder / "cache")
        sizes = (layout.carry_size, layout.request_size, layout.carry_size, layout.response_size)
        rows = [np.zeros((1, size), np.float32) for size in sizes]
        rows[1][:, : layout.vector_size] = rng.standard_normal((1, layout.vector_size))
        if layout.image:
            layout.image_of(rows[1])[...] = rng.integers(0, 256, layout.image, np.uint8)
        runs[name] = lambda policy=policy, rows=rows: policy.run(*rows)  # type: ignore[misc]
    for run in runs.values():
        _samples_us(run, WARM_UP)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            taken[name] += _samples_us(run, SAMPLES)
    return {name: float(np.median(values)) for name, values in taken.items()}


def _samples_us(function: Callable[[], Any], count: int) -> list[float]:
    taken = []
    for _ in range(count):
        begun_ns = time.perf_counter_ns()
        function()
        taken.append((time.perf_counter_ns() - begun_ns) / 1e3)
    return taken


if __name__ == "__main__":
    given = Path(sys.argv[2])
    print(json.dumps(_export(given) if sys.argv[1] == "export" else _steps(given, sys.argv[3])))
