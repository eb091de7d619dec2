"""What an action costs through the router, beside its floors, measured in the same run.

    python -m tests.bench bench_inference

Floors: the compiled step alone in a process set up like the worker, and one packet there and back through a
socket pair between two processes. The router's process never imports JAX, as the daemon's does not.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from brain_service.export.bundle import Bundle
from brain_service.inference import InferenceRouter, InferRequest
from brain_service.inference.arena import Layout
from brain_service.inference.backends import BACKENDS
from brain_service.settings import InferenceSettings
from tests.bench.rows import Row

OBSERVATION, ACTION = 39, 4
WARM_UP, SAMPLES = 300, 5000


def measure(preset: str = "development") -> list[Row]:
    """Measure with two models of `preset` and return the rows, in microseconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ids = [_child(folder, "export", preset, str(seed))["model_id"] for seed in (0, 1)]
        step = _child(folder, "step", ids[0])
        packet = _round_trip()
        figures = uvloop.run(_through_router(folder, ids))
    rows = [
        Row(f"{what}, {preset}, {q}", figures[key][q], "us", floor_name, floor[q])
        for key, what, floor_name, floor in (
            ("infer", "router.infer", "the compiled step alone", step),
            ("compute", "the step inside its worker", "the compiled step alone", step),
            ("during_swap", "router.infer while a model is swapped in", "without a swap", figures["infer"]),
        )
        for q in ("p50", "p99", "max")
    ]
    return [*rows, Row("compiled step, p50", step["p50"], "us", "socket-pair round trip", packet["p50"])]


def main() -> None:
    """Run one of the measurements that need a process of their own and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs="+", required=True, help="folder, task and its arguments")
    folder, task, *rest = parser.parse_args().child
    print(json.dumps(_CHILDREN[task](Path(folder), *rest)))


def _summary(samples_ns: Sequence[int]) -> dict[str, float]:
    p50, p99 = np.percentile(samples_ns, [50, 99]) / 1e3
    return {"p50": round(p50, 1), "p99": round(p99, 1), "max": round(max(samples_ns) / 1e3, 1)}


def _child(folder: Path, task: str, *rest: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.bench_inference", "--child", str(folder), task, *rest]
    environment = {**os.environ, **BACKENDS["jax-cpu"].environment}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _export(folder: Path, preset: str, seed: str) -> dict[str, Any]:
    import jax

    from brain_service.export.jax_step import PolicySource, export_policy
    from brain_service.model.config import PRESETS
    from brain_service.model.core import init_params
    from brain_service.spec import EpisodeSpec, Feature
    from brain_service.training.normalisation import Normaliser

    config = PRESETS[preset](obs_dim=OBSERVATION, action_dim=ACTION)
    normaliser = Normaliser(
        observation_mean=np.zeros(OBSERVATION, np.float32),
        observation_std=np.ones(OBSERVATION, np.float32),
        action_low=-np.ones(ACTION, np.float32),
        action_high=np.ones(ACTION, np.float32),
        reward_mean=np.zeros(1, np.float32),
        reward_std=np.ones(1, np.float32),
    )
    spec = EpisodeSpec({"state": Feature("float32", (OBSERVATION,))}, {"command": Feature("float32", (ACTION,))})
    params = init_params(config, jax.random.key(int(seed)))
    path = export_policy(
        PolicySource(config, params, normaliser, spec, None), folder / "models", forms=("jax", "onnx")
    )
    return {"model_id": path.name}


def _bare_step(folder: Path, model_id: str) -> dict[str, Any]:
    from brain_service.inference.backends.jax import load

    bundle = Bundle.open(folder / "models" / model_id)
    layout = Layout.of(bundle.manifest)
    policy = load(bundle, layout, folder / "cache")
    sizes = (layout.carry_size, layout.request_size, layout.carry_size, layout.response_size)
    rows = [np.zeros((1, size), np.float32) for size in sizes]
    samples_ns = []
    for _ in range(WARM_UP + SAMPLES):
        begun_ns = time.perf_counter_ns()
        policy.run(*rows)
        samples_ns.append(time.perf_counter_ns() - begun_ns)
    return _summary(samples_ns[WARM_UP:])


_CHILDREN: Mapping[str, Any] = {"export": _export, "step": _bare_step}


def _round_trip() -> dict[str, float]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    echo = (
        "import socket, sys\n"
        f"sock = socket.socket(fileno={theirs.fileno()})\n"
        "while data := sock.recv(64): sock.send(data)\n"
    )
    with subprocess.Popen([sys.executable, "-c", echo], pass_fds=[theirs.fileno()]):
        theirs.close()
        samples_ns = []
        with ours:
            for _ in range(WARM_UP + SAMPLES):
                begun_ns = time.perf_counter_ns()
                ours.send(bytes(32))
                ours.recv(64)
                samples_ns.append(time.perf_counter_ns() - begun_ns)
    return _summary(samples_ns[WARM_UP:])


async def _through_router(folder: Path, ids: Sequence[str]) -> dict[str, dict[str, float]]:
    settings = InferenceSettings(backends=("cpu",), deadline_ms=10_000)
    router = InferenceRouter(folder / "models", settings, folder / "cache")
    await router.start()
    await router.activate(ids[0])
    samples_ns, compute_us = await _robot(router, WARM_UP + SAMPLES)
    figures = {
        "infer": _summary(samples_ns[WARM_UP:]),
        "compute": _summary([int(value * 1e3) for value in compute_us[WARM_UP:]]),
    }
    swap = asyncio.create_task(router.activate(ids[1]))
    during_ns: list[int] = []
    while not swap.done():
        during_ns += (await _robot(router, 50))[0]
    await swap
    figures["during_swap"] = _summary(during_ns)
    await router.close()
    return figures


async def _robot(router: InferenceRouter, steps: int) -> tuple[list[int], list[float]]:
    session = await router.create_session()
    rng = np.random.default_rng(0)
    samples_ns, compute_us = [], []
    for _ in range(steps):
        observation = {"state": rng.standard_normal(OBSERVATION).tolist()}
        begun_ns = time.perf_counter_ns()
        reply = await router.infer(InferRequest(session.session_id, observation))
        samples_ns.append(time.perf_counter_ns() - begun_ns)
        compute_us.append(reply.timings_us["compute"])
    await router.end_session(session.session_id)
    return samples_ns, compute_us


if __name__ == "__main__":
    main()
