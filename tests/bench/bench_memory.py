"""What the daemon's memory does while one episode grows by two million steps.

    python -m tests.bench bench_memory

The value is the growth of its resident memory after a warm-up, the floor what it held then. Typed msgpack in
batches, at whatever rate the machine gives; nothing is kept on the client's side either.
"""

import http.client
import shutil
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import psutil

from tests.bench.rows import Row
from tests.processes import running_daemon

STEPS = 2_000_000
WARM_UP = 100_000
BATCH = 250
OBSERVATION, ACTION = 128, 32


def _typed(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> dict[str, object]:
    return {"__ndarray__": True, "dtype": "<f4", "shape": list(values.shape), "data": values.tobytes()}


def _batch(rng: np.random.Generator, first: int) -> bytes:
    states = rng.standard_normal((BATCH, OBSERVATION)).astype(np.float32)
    commands = np.zeros(ACTION, np.float32)
    steps = [
        {"step_index": first + n, "observation": {"state": _typed(state)}, "action": {"command": _typed(commands)}}
        for n, state in enumerate(states)
    ]
    return msgspec.msgpack.encode(steps)


def measure() -> list[Row]:
    """Measure and return the row, in MB."""
    rng = np.random.default_rng(0)
    # Beside the repository: a memory-backed temporary directory would hold the log itself.
    folder = Path(tempfile.mkdtemp(prefix="bench-memory-", dir=Path("build")))
    try:
        with running_daemon(folder / "brain") as daemon:
            connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)

            def post(path: str, body: bytes, kind: str) -> bytes:
                connection.request("POST", path, body, {"Content-Type": kind})
                answer = connection.getresponse()
                data = answer.read()
                if answer.status not in (200, 201):
                    raise RuntimeError(f"{path} -> {answer.status}: {data.decode()}")
                return data

            episode = msgspec.json.decode(post("/episodes", b"{}", "application/json"))["episode_id"]
            process = psutil.Process(daemon.process.pid)
            warm_bytes = peak_bytes = 0
            for first in range(0, WARM_UP + STEPS, BATCH):
                post(f"/episodes/{episode}/steps", _batch(rng, first), "application/msgpack")
                if first == WARM_UP:
                    warm_bytes = process.memory_info().rss
                if first >= WARM_UP:
                    peak_bytes = max(peak_bytes, process.memory_info().rss)
    finally:
        shutil.rmtree(folder)
    growth = (peak_bytes - warm_bytes) / 1e6
    return [
        Row(
            f"growth of the daemon over {STEPS:,} steps of one episode",
            growth,
            "MB",
            "held before",
            warm_bytes / 1e6,
        )
    ]
