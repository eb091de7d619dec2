"""What the page costs: the daemon's CPU with 1 and 5 viewers, and `/infer` beside them; the floor is no viewer.

    python -m tests.bench bench_dashboard

Rounds alternate between the numbers of viewers, since a shared machine changes its mood. CPU is that of the
daemon's own process. Latency is the client's, one request at a time at 50 Hz.
"""

import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil

from tests.bench.rows import Row
from tests.inference.toy import build_toy
from tests.processes import Daemon, running_daemon

VIEWERS = (0, 1, 5)
PERIOD_S = 0.02
ROUNDS, SECONDS = 2, 8.0


@contextlib.contextmanager
def viewers(daemon: Daemon, count: int) -> Iterator[list[int]]:
    """Follow the stream with `count` clients; yields the bytes that each has got."""
    done, got = threading.Event(), [0] * count

    def look(number: int) -> None:
        with httpx.stream("GET", f"{daemon.url}/status/stream", timeout=30) as answer:
            for part in answer.iter_raw():
                got[number] += len(part)
                if done.is_set():
                    return

    threads = [threading.Thread(target=look, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    try:
        yield got
    finally:
        done.set()
        for thread in threads:
            thread.join()


def cpu_share(daemon: Daemon, seconds: float) -> float:
    """Return the share of one core that the daemon's own process uses."""
    process = psutil.Process(daemon.process.pid)
    before, began_s = process.cpu_times(), time.monotonic()
    time.sleep(seconds)
    after = process.cpu_times()
    used_s = after.user + after.system - before.user - before.system
    return float(used_s / (time.monotonic() - began_s))


def drive(daemon: Daemon, seconds: float) -> list[float]:
    """Ask for an action every 20 ms; return the microseconds that each took."""
    took_us = []
    with httpx.Client(base_url=daemon.url, timeout=30) as http:
        session = http.post("/sessions", json={}).json()["session_id"]
        body = {"session_id": session, "observation": {"arm": {"joints": [0.1, 0.2]}, "load": 0.5}}
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            began_s = time.perf_counter()
            http.post("/infer", json=body).raise_for_status()
            took_us.append(1e6 * (time.perf_counter() - began_s))
            time.sleep(max(0.0, PERIOD_S - took_us[-1] / 1e6))
        http.delete(f"/sessions/{session}")
    return took_us


def measure() -> list[Row]:
    """Measure and return the rows."""
    idle: dict[int, list[float]] = {count: [] for count in VIEWERS}
    took_us: dict[int, list[float]] = {count: [] for count in VIEWERS}
    sent: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        model = build_toy(Path(folder) / "brain" / "models")
        with running_daemon(Path(folder) / "brain", env={"BRAIN_INFERENCE__DEADLINE_MS": "30000"}) as daemon:
            httpx.post(f"{daemon.url}/models/{model}/activate", timeout=120).raise_for_status()
            for _ in range(ROUNDS):
                for count in VIEWERS:
                    with viewers(daemon, count) as got:
                        before = sum(got)
                        idle[count].append(cpu_share(daemon, SECONDS))
                        sent.append((sum(got) - before) / SECONDS / max(count, 1))
                        took_us[count] += drive(daemon, SECONDS)
    floor = 100 * statistics.median(idle[0])
    rows = [Row("bytes to a viewer", max(sent) / 1e3, "kB/s", "nothing", 0.0)]
    for count in VIEWERS[1:]:
        share = 100 * statistics.median(idle[count])
        rows.append(Row(f"idle daemon, {count} viewers", share, "% of a core", "no viewer", floor))
        pair = np.array(took_us[count]), np.array(took_us[0])
        rows += Row.pair(f"/infer beside {count} viewers", *pair, floor_name="no viewer")
    return rows
