"""What swaps cost live robots: errors, mixed versions, added latency and missed ticks, beside a run without swaps.

    python -m tests.bench bench_swap

Toy models whose action names its model (scale) and the number of steps that its state has seen, so an answer of
mixed versions cannot be mistaken. 10,000 requests without swaps, then 10,000 while the two models are swapped
without a pause, sessions finishing on theirs or moving along by replay. Then a robot at 50 Hz while a model that
no worker has loaded yet is started, tried in shadow and swapped in.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from brain_service.errors import BrainError
from brain_service.inference import InferenceRouter, InferRequest
from brain_service.settings import InferenceSettings
from tests.bench.rows import Row
from tests.inference.toy import Floats, Reference, as_tree, build_toy, toy_observation

REQUESTS, ROBOTS, EPISODE = 10_000, 4, 100
KEPT = 16
PAUSE_S = {"finish": 0.0, "replay": 0.002}
"""Between two requests of a robot: one that never pauses gives its inputs no time to be replayed."""
SWAP_S = {"finish": 0.01, "replay": 0.1}
TICK_S, TICKS = 0.02, 250

Samples = np.ndarray[Any, np.dtype[np.float64]]


def measure() -> list[Row]:
    """Measure and return the rows."""
    with tempfile.TemporaryDirectory() as name:
        models_dir = Path(name) / "models"
        scales = {build_toy(models_dir, scale): scale for scale in (0.5, 0.55, 0.6)}
        rows: list[Row] = []
        for on_swap in ("finish", "replay"):
            rows += uvloop.run(_continuous(models_dir, Path(name) / "cache", scales, on_swap))
        return rows + uvloop.run(_cold(models_dir, Path(name) / "cache", list(scales)))


class _Robot:
    """Asks, and counts the answers that are wrong for their own model and the state it claims."""

    def __init__(self, router: InferenceRouter, scales: dict[str, float], seed: int) -> None:
        self.latencies_us: list[float] = []
        self.errors = self.mixed = self.moves = 0
        self._router, self._scales = router, scales
        self._rng = np.random.default_rng(seed)
        self._asked: list[tuple[Floats, Floats]] = []

    async def begin(self) -> None:
        info = await self._router.create_session()
        self.session_id, self._model_id, self._asked = info.session_id, info.model_id, []
        self._reference = Reference(self._scales[info.model_id])

    async def step(self) -> None:
        observation = toy_observation(self._rng)
        begun_s = time.perf_counter()
        try:
            reply = await self._router.infer(InferRequest(self.session_id, as_tree(observation)))
        except BrainError:
            self.errors += 1
            return
        self.latencies_us.append((time.perf_counter() - begun_s) * 1e6)
        before = self._asked[-1][1] if self._asked else np.zeros(2, np.float32)
        if reply.model_id != self._model_id:
            self.moves += 1
            self._model_id = reply.model_id
            self._reference = Reference(self._scales[reply.model_id])
            past = np.zeros(2, np.float32)
            self.mixed += not min(KEPT, len(self._asked)) <= reply.state_step <= len(self._asked)
            for seen, answered in self._asked[len(self._asked) - reply.state_step :]:
                self._reference.previous = past
                self._reference.step(seen)
                past = answered
        self._reference.previous = before
        expected = self._reference.step(observation)
        # One step more or less in the state is 0.0005, another model a tenth: far above float32.
        self.mixed += not np.allclose(reply.chunk, expected, rtol=0, atol=1e-5)
        self._asked.append((observation, reply.chunk[0]))

    async def drive(self, requests: int, pause_s: float) -> None:
        for number in range(requests):
            if number % EPISODE == 0:
                if number:
                    await self._router.end_session(self.session_id)
                await self.begin()
            await self.step()
            await asyncio.sleep(pause_s)
        await self._router.end_session(self.session_id)


def _router(models_dir: Path, cache_dir: Path, **settings: Any) -> InferenceRouter:
    options = InferenceSettings(backends=("cpu",), deadline_ms=10_000, replay_steps=KEPT, **settings)
    return InferenceRouter(models_dir, options, cache_dir)


async def _continuous(models_dir: Path, cache_dir: Path, scales: dict[str, float], on_swap: str) -> list[Row]:
    first, second = list(scales)[:2]
    router = _router(models_dir, cache_dir, on_swap=on_swap, canary_steps=0)
    await router.start()
    await router.activate(first)
    await router.activate(second)
    calm = await _run(router, scales, PAUSE_S[on_swap])
    swapping = asyncio.create_task(_swap_on(router, SWAP_S[on_swap]))
    stirred = await _run(router, scales, PAUSE_S[on_swap])
    swapping.cancel()
    (swaps,) = await asyncio.gather(swapping)
    await router.close()
    moves = sum(robot.moves for robot in stirred)
    name = f"{REQUESTS:,} requests, {swaps} swaps, sessions {on_swap} ({moves} moved)"
    errors, mixed = (sum(getattr(robot, what) for robot in stirred) for what in ("errors", "mixed"))
    calm_us, stirred_us = _latencies(calm), _latencies(stirred)
    percentiles = [
        Row(f"{name}: latency p{q}", float(np.percentile(stirred_us, q)), "us", "without swaps", float(at))
        for q, at in ((50, np.percentile(calm_us, 50)), (99, np.percentile(calm_us, 99)))
    ]
    return [
        Row(f"{name}: errors", errors, "", "without swaps", sum(robot.errors for robot in calm)),
        Row(f"{name}: answers of mixed versions", mixed, "", "without swaps", sum(robot.mixed for robot in calm)),
        *percentiles,
        Row(f"{name}: worst latency", stirred_us.max() / 1e3, "ms", "without swaps", calm_us.max() / 1e3),
        Row(
            f"{name}: worst added latency",
            (stirred_us.max() - np.percentile(calm_us, 50)) / 1e3,
            "ms",
            "without swaps",
            (calm_us.max() - np.percentile(calm_us, 50)) / 1e3,
        ),
    ]


async def _run(router: InferenceRouter, scales: dict[str, float], pause_s: float) -> list[_Robot]:
    robots = [_Robot(router, scales, seed) for seed in range(ROBOTS)]
    await asyncio.gather(*(robot.drive(REQUESTS // ROBOTS, pause_s) for robot in robots))
    return robots


async def _swap_on(router: InferenceRouter, pause_s: float) -> int:
    swaps = 0
    try:
        while True:
            await router.rollback()
            swaps += 1
            await asyncio.sleep(pause_s)
    except asyncio.CancelledError:
        return swaps


def _latencies(robots: list[_Robot]) -> Samples:
    return np.concatenate([robot.latencies_us for robot in robots])


async def _cold(models_dir: Path, cache_dir: Path, ids: list[str]) -> list[Row]:
    """Swap models in that are on disk only, under a robot that keeps 50 Hz."""
    router = _router(models_dir, cache_dir, canary_steps=50, session_idle_s=3600)
    await router.start()
    await router.activate(ids[0])

    async def nothing() -> None:
        await asyncio.sleep(TICKS * TICK_S)

    calm_us, calm_missed = await _paced(router, nothing)
    worst_us, missed = 0.0, []
    for model_id in ids[1:]:
        # The third is loaded when the first has been dropped: every activation starts a worker.
        async def swap(model_id: str = model_id) -> None:
            report = await router.activate(model_id)
            assert report is not None and "in shadow" in report, report

        stirred_us, stirred_missed = await _paced(router, swap)
        worst_us = max(worst_us, float(stirred_us.max()))
        missed.append(stirred_missed)
    await router.close()
    return [
        Row("load, canary and swap at 50 Hz: worst latency", worst_us / 1e3, "ms", "no swap", calm_us.max() / 1e3),
        Row(
            "load, canary and swap at 50 Hz: missed ticks a swap",
            float(np.mean(missed)),
            "",
            "no swap",
            calm_missed,
        ),
    ]


async def _paced(router: InferenceRouter, during: Callable[[], Awaitable[None]]) -> tuple[Samples, int]:
    """Ask every 20 ms while `during` runs; return the latencies and how many answers missed their tick."""
    session = await router.create_session()
    rng, samples, missed = np.random.default_rng(0), [], 0
    task = asyncio.ensure_future(during())
    due_s = time.perf_counter()
    while not task.done():
        due_s += TICK_S
        # The robot's own lateness is not the daemon's: a tick begins when it asks.
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        begun_s = time.perf_counter()
        await router.infer(InferRequest(session.session_id, as_tree(toy_observation(rng))))
        taken_s = time.perf_counter() - begun_s
        samples.append(taken_s * 1e6)
        missed += taken_s > TICK_S
    await task
    await router.end_session(session.session_id)
    return np.asarray(samples), missed
