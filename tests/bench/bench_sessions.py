"""What idle sessions cost in memory, beside 2.2 times their carry and 8 kB each.

    python -m tests.bench bench_sessions

Memory is the proportional set size of the router's process and its workers: a shared page counts once.
"""

import asyncio
import gc
import tempfile
from pathlib import Path

import psutil
import uvloop

from brain_service.inference import InferenceRouter
from brain_service.inference.arena import Layout
from brain_service.inference.calls import InferRequest
from brain_service.settings import InferenceSettings
from tests.bench.bench_inference import OBSERVATION, _child
from tests.bench.rows import Row

SESSIONS = 1000


def measure(presets: tuple[str, ...] = ("development", "pi5_optimized")) -> list[Row]:
    """Measure with a model of each preset and return the rows, in kB a session."""
    rows = []
    for preset in presets:
        with tempfile.TemporaryDirectory() as name:
            model_id = _child(Path(name), "export", preset, "0")["model_id"]
            carry_kb, found_kb = uvloop.run(_grow(Path(name), model_id))
        rows.append(
            Row(
                f"an idle session of {SESSIONS}, {preset} (carry {carry_kb:.1f} kB)",
                found_kb,
                "kB",
                "2.2 x its carry + 8 kB",
                2.2 * carry_kb + 8.0,
            )
        )
    return rows


async def _grow(folder: Path, model_id: str) -> tuple[float, float]:
    settings = InferenceSettings(
        backends=("cpu",), deadline_ms=10_000, max_sessions=SESSIONS + 1, session_idle_s=3600
    )
    router = InferenceRouter(folder / "models", settings, folder / "cache")
    await router.start()
    await router.activate(model_id)
    # What the first session makes is made once.
    await _live(router, 1)
    before = await asyncio.to_thread(_memory_bytes)
    await _live(router, SESSIONS)
    after = await asyncio.to_thread(_memory_bytes)
    manifest = router._sessions.all()[0].model.manifest
    await router.close()
    return Layout.of(manifest).carry_size * 4 / 1e3, (after - before) / SESSIONS / 1e3


async def _live(router: InferenceRouter, count: int) -> None:
    """Begin sessions that have answered twice, so that both slots of their carry are in use."""
    observation = {"state": [0.1] * OBSERVATION}
    for _ in range(count):
        session = await router.create_session()
        for _ in range(2):
            await router.infer(InferRequest(session.session_id, observation))


def _memory_bytes() -> int:
    gc.collect()
    me = psutil.Process()
    return sum(process.memory_full_info().pss for process in [me, *me.children(recursive=True)])
