"""What the page costs: the daemon's CPU with 0, 1 and 5 viewers, and `/infer` beside them.

    python -m tests.bench.dashboard [--seconds 20] [--rounds 3]

Rounds alternate between the numbers of viewers, since a shared machine changes its mood. The daemon's CPU is that of
its own process; its floor is the same daemon with no viewer. Latency is the client's, one request at a time at 50 Hz.
"""

import argparse
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

from tests.inference.toy import build_toy
from tests.processes import Daemon, running_daemon

VIEWERS = (0, 1, 5)
PERIOD_S = 0.02


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
    """Ask for an action every 20 ms; return the milliseconds that each took."""
    took_ms = []
    with httpx.Client(base_url=daemon.url, timeout=30) as http:
        session = http.post("/sessions", json={}).json()["session_id"]
        body = {"session_id": session, "observation": {"arm": {"joints": [0.1, 0.2]}, "load": 0.5}}
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            began_s = time.perf_counter()
            http.post("/infer", json=body).raise_for_status()
            took_ms.append(1e3 * (time.perf_counter() - began_s))
            time.sleep(max(0.0, PERIOD_S - took_ms[-1] / 1e3))
        http.delete(f"/sessions/{session}")
    return took_ms


def main() -> None:
    """Measure and print one line a number of viewers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    idle: dict[int, list[float]] = {count: [] for count in VIEWERS}
    took: dict[int, list[float]] = {count: [] for count in VIEWERS}
    bytes_s: dict[int, list[float]] = {count: [] for count in VIEWERS}
    with tempfile.TemporaryDirectory() as folder:
        model = build_toy(Path(folder) / "brain" / "models")
        with running_daemon(Path(folder) / "brain", env={"BRAIN_INFERENCE__DEADLINE_MS": "30000"}) as daemon:
            httpx.post(f"{daemon.url}/models/{model}/activate", timeout=120).raise_for_status()
            for _ in range(options.rounds):
                for count in VIEWERS:
                    with viewers(daemon, count) as got:
                        before = sum(got)
                        idle[count].append(cpu_share(daemon, options.seconds))
                        bytes_s[count].append((sum(got) - before) / options.seconds / max(count, 1))
                        took[count] += drive(daemon, options.seconds)
    for count in VIEWERS:
        p50, p99 = np.percentile(took[count], [50, 99])
        print(
            f"{count} viewers: idle daemon {100 * statistics.median(idle[count]):.2f} % of a core, "
            f"{statistics.median(bytes_s[count]) / 1e3:.1f} kB/s each; /infer p50 {p50:.2f} ms, p99 {p99:.2f} ms "
            f"({len(took[count])} steps)"
        )


if __name__ == "__main__":
    main()
