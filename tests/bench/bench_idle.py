"""What the daemon takes while nothing happens, and how fast it says how it is while a robot records.

    python -m tests.bench bench_idle

The floors: an empty interpreter for the memory, one whole core for the time, and `/livez` under the same load for
`/health`. The load is one client that posts 32 observed numbers at 100 Hz.
"""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import psutil

from tests.bench.rows import Row
from tests.processes import Daemon, running_daemon

IDLE_S = 20.0
ASKED = 300


def measure() -> list[Row]:
    """Measure and return the rows."""
    with tempfile.TemporaryDirectory() as folder, running_daemon(Path(folder) / "brain") as daemon:
        return [*_idle(daemon), *_asked(daemon)]


def _idle(daemon: Daemon) -> list[Row]:
    process = psutil.Process(daemon.process.pid)
    time.sleep(5.0)
    begun, begun_s = process.cpu_times(), time.monotonic()
    time.sleep(IDLE_S)
    now = process.cpu_times()
    share = (now.user + now.system - begun.user - begun.system) / (time.monotonic() - begun_s)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(9)"]) as empty:
        time.sleep(0.5)
        floor = psutil.Process(empty.pid).memory_info().rss
        empty.kill()
    return [
        Row("resident memory at rest", process.memory_info().rss / 1e6, "MB", "an empty interpreter", floor / 1e6),
        Row("share of a core at rest", 100 * share, "%", "one core", 100.0),
    ]


def _asked(daemon: Daemon) -> list[Row]:
    over = threading.Event()

    def record() -> None:
        with httpx.Client(base_url=daemon.url) as client:
            episode = client.post("/episodes", json={"environment_id": "bench"}).json()["episode_id"]
            step = 0
            while not over.wait(0.01):
                body = {"step_index": step, "observation": {"state": [0.5] * 32}, "action": {"command": [0.5]}}
                client.post(f"/episodes/{episode}/steps", json=body).raise_for_status()
                step += 1

    recording = threading.Thread(target=record)
    recording.start()
    try:
        with httpx.Client(base_url=daemon.url) as client:
            found, floor = (_latencies(client, path) for path in ("/health", "/livez"))
    finally:
        over.set()
        recording.join()
    return Row.pair("GET /health while a robot records", found, floor, "GET /livez")


def _latencies(client: httpx.Client, path: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    taken = np.zeros(ASKED)
    for index in range(ASKED):
        begun_s = time.perf_counter()
        client.get(path)
        taken[index] = (time.perf_counter() - begun_s) * 1e6
        time.sleep(0.01)
    return taken
