"""What the model costs beside its floors: a step, a gradient, its compilation.

    python -m tests.bench bench_model

Each part runs in a process of its own: the step set up as an inference worker is, the rest as training is. Floors
come from the same process: one matrix-vector product over as many weights, and the model's own matrix products
run back to back.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from brain_service.inference.backends import BACKENDS
from brain_service.jobs.loop import NUMERICS
from tests.bench.rows import Row

OBSERVATION, ACTION = 39, 4
PRESETS = ("development", "pi5_optimized", "tpu_optimized")
BATCH, LENGTH = 32, 64
ROUNDS, WARM_UP, SAMPLES = 20, 300, 150
COMPILE_LIMIT_S = 15.0


def measure() -> list[Row]:
    """Run every part and return its rows."""
    with tempfile.TemporaryDirectory() as name:
        cold, warm, graph = (
            _child("step", name, backend, environment=BACKENDS[backend].environment)
            for backend in ("jax-cpu", "jax-cpu", "onnx-cpu")
        )
    training = {"JAX_PLATFORMS": "cpu", **NUMERICS}
    train = {preset: _child("train", preset, environment=training) for preset in PRESETS[:2]}
    compiled = {preset: _child("compile", preset) for preset in PRESETS}
    length, wave = _child("length"), _child("wave")
    weights = f"matrix-vector product over {warm['parameters']:,.0f} weights, p50"
    parallel = "by associative_scan"
    return [
        *(
            row
            for backend, each in (("jax-cpu", warm), ("onnx-cpu", graph))
            for row in (
                Row(f"step, pi5_optimized, {backend}, p50", each["p50"], "us", weights, each["matvec"]),
                Row(f"step, pi5_optimized, {backend}, p95", each["p95"], "us", "its p50", each["p50"]),
            )
        ),
        *(
            Row(f"gradient, {preset}, B=32 T=64", each["rate"], "GFLOP/s", "its matmuls alone", each["peak"])
            for preset, each in train.items()
        ),
        *(
            Row(f"gradient a time step, development, T={T}", length[T], "us", "T=64", length["64"])
            for T in ("128", "256", "512")
        ),
        *(
            Row(f"compiling the {what}, {preset}", each[what], "s", "limit", COMPILE_LIMIT_S)
            for preset, each in compiled.items()
            for what in ("step", "gradient")
        ),
        Row("load and compile, second process", warm["load"], "s", "first process", cold["load"]),
        *(
            Row(f"wave by scan, pi5_optimized, T={T}", wave[f"scan {T}"], "ms", parallel, wave[f"parallel {T}"])
            for T in (64, 512)
        ),
    ]  # fmt: skip


def main() -> None:
    """Run one part and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs="+", required=True, help="part and its argument")
    part, *rest = parser.parse_args().child
    print(json.dumps(_PARTS[part](*rest)))


def _child(*arguments: str, environment: Mapping[str, str] = {"JAX_PLATFORMS": "cpu"}) -> dict[str, float]:
    # A core type forced on OpenBLAS from outside would slow the floor down.
    inherited = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    command = [sys.executable, "-m", "tests.bench.bench_model", "--child", *arguments]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, env={**inherited, "OPENBLAS_NUM_THREADS": "1", **environment}
    )
    document: dict[str, float] = json.loads(done.stdout)
    return document


def _step(folder: str, backend: str) -> dict[str, float]:
    """Time a worker's own loaded step, and between its runs the floor, so that both see the same machine."""
    import jax

    from brain_service.export.bundle import Bundle
    from brain_service.export.jax_step import PolicySource, export_policy
    from brain_service.inference.arena import Layout
    from brain_service.model.core import count_parameters, init_params
    from brain_service.spec import EpisodeSpec, Feature

    models = Path(folder) / "models"
    config = _config("pi5_optimized")
    params = init_params(config, jax.random.key(0))
    if not models.exists():
        spec = EpisodeSpec({"state": Feature("float32", (OBSERVATION,))}, {"arm": Feature("float32", (ACTION,))})
        export_policy(PolicySource(config, params, _normaliser(), spec, None), models, forms=("jax", "onnx"))
    bundle = Bundle.open(next(models.iterdir()))
    layout = Layout.of(bundle.manifest)
    begun = time.perf_counter()
    policy = importlib.import_module(BACKENDS[backend].module).load(bundle, layout, Path(folder) / "cache")
    load_s = time.perf_counter() - begun
    sizes = (layout.carry_size, layout.request_size, layout.carry_size, layout.response_size)
    rows = [np.zeros((1, size), np.float32) for size in sizes]
    rng = np.random.default_rng(0)
    rows[1][:] = rng.standard_normal(rows[1].shape)
    parameters = count_parameters(params)
    weights = rng.standard_normal((parameters // 256, 256)).astype(np.float32)
    vector = rng.standard_normal(256).astype(np.float32)
    _samples_us(lambda: policy.run(*rows), WARM_UP)
    steps, floors = [], []
    for _ in range(ROUNDS):
        steps.append(_samples_us(lambda: policy.run(*rows), SAMPLES))
        floors.append(_samples_us(lambda: weights @ vector, SAMPLES))
    p50, p95 = np.percentile(steps, [50, 95])
    return {
        "p50": float(p50),
        "p95": float(p95),
        "matvec": float(np.median(floors)),
        "parameters": float(parameters),
        "load": load_s,
    }


def _samples_us(function: Callable[[], Any], count: int) -> list[float]:
    taken = []
    for _ in range(count):
        begun_ns = time.perf_counter_ns()
        function()
        taken.append((time.perf_counter_ns() - begun_ns) / 1e3)
    return taken


def _config(preset: str) -> Any:
    from brain_service.model.config import PRESETS as PRESET_OF

    return PRESET_OF[preset](obs_dim=OBSERVATION, action_dim=ACTION)


def _normaliser() -> Any:
    from brain_service.training.normalisation import Normaliser

    return Normaliser(
        observation_mean=np.zeros(OBSERVATION, np.float32),
        observation_std=np.ones(OBSERVATION, np.float32),
        action_low=-np.ones(ACTION, np.float32),
        action_high=np.ones(ACTION, np.float32),
        reward_mean=np.zeros(1, np.float32),
        reward_std=np.ones(1, np.float32),
    )


def _objective(preset: str, length: int) -> tuple[Any, Any, Any]:
    """Return the training loss as a function of parameters and batch, fresh parameters and a random batch."""
    import jax
    import jax.numpy as jnp

    from brain_service.model.core import init_params, unroll
    from brain_service.model.signals import StepInputs
    from brain_service.model.state import init_carry
    from brain_service.training.objective import Sequences, losses

    config = _config(preset)
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return jnp.asarray(rng.standard_normal((BATCH, length, *shape)), jnp.float32)

    ones = jnp.ones((BATCH, length), jnp.float32)
    inputs = StepInputs(normal(OBSERVATION), normal(ACTION), normal(), jnp.zeros_like(ones).at[:, 0].set(1.0))
    batch = Sequences(inputs, normal(ACTION), normal(), jnp.zeros_like(ones), ones, ones, ones, ones)

    def loss(params: Any, batch: Any) -> Any:
        _, outputs = unroll(params, config, init_carry(config, BATCH), batch.inputs)
        return losses(outputs, batch)["loss"]

    return loss, init_params(config, jax.random.key(0)), batch


def _train(preset: str) -> dict[str, float]:
    import jax

    from tests.bench.matmuls import back_to_back_s, best_s, flops, products

    loss, params, batch = _objective(preset, LENGTH)
    found = products(loss, params, batch)
    # Once before and once after the floor: the better one, should the machine have been busy.
    gradient = jax.jit(jax.value_and_grad(loss))
    first = best_s(gradient, params, batch)
    floor_s = back_to_back_s(found)
    taken_s = min(first, best_s(gradient, params, batch))
    return {"rate": flops(found) / taken_s / 1e9, "peak": flops(found) / floor_s / 1e9}


def _length() -> dict[str, float]:
    import jax

    from tests.bench.matmuls import best_s

    found = {}
    for length in (64, 128, 256, 512):
        loss, params, batch = _objective("development", length)
        found[str(length)] = best_s(jax.jit(jax.value_and_grad(loss)), params, batch, repeats=3) / length * 1e6
    return found


def _compile(preset: str) -> dict[str, float]:
    import jax

    from brain_service.model.core import step
    from brain_service.model.signals import StepInputs
    from brain_service.model.state import init_carry

    config = _config(preset)
    loss, params, batch = _objective(preset, LENGTH)
    now = StepInputs(*(part[:1, 0] for part in batch.inputs if part is not None))
    one = jax.jit(lambda params, carry, inputs: step(params, config, carry, inputs))
    found = {}
    for name, function, arguments in (
        ("step", one, (params, init_carry(config, 1), now)),
        ("gradient", jax.jit(jax.value_and_grad(loss)), (params, batch)),
    ):
        begun = time.perf_counter()
        function.lower(*arguments).compile()
        found[name] = time.perf_counter() - begun
    return found


def _wave() -> dict[str, float]:
    import jax
    import jax.numpy as jnp

    from brain_service.model.wave import WaveDrive, wave_sequence
    from tests.bench.matmuls import best_s

    config = _config("pi5_optimized")
    angle = jnp.linspace(0.1, 3.0, config.wave_pairs)
    found = {}
    for length in (64, 512):
        shape = (BATCH, length, config.d_w)
        drive = WaveDrive(jnp.full(shape, 0.9), jnp.ones(shape), jnp.cos(angle), jnp.sin(angle))
        for name, associative in (("scan", False), ("parallel", True)):

            def loss(drive: WaveDrive, associative: bool = associative) -> Any:
                states = wave_sequence(jnp.zeros((BATCH, config.d_w)), drive, associative=associative)
                return jnp.sum(jnp.square(states))

            found[f"{name} {length}"] = best_s(jax.jit(jax.grad(loss)), drive) * 1e3
    return found


_PARTS: Mapping[str, Callable[..., dict[str, float]]] = {
    "step": _step,
    "train": _train,
    "length": _length,
    "compile": _compile,
    "wave": _wave,
}


if __name__ == "__main__":
    main()
