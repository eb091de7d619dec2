"""What the client costs, 128 + 32 float32 a step: `python -m tests.client.measure`."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from brain_service.client import BrainClient, BufferFullError, EpisodeRecorder
from brain_service.client.sender import Transport
from brain_service.client.wire import encode_step
from tests.processes import free_port, running_daemon

OBSERVATION = {"state": np.random.default_rng(0).normal(size=128).astype(np.float32)}
ACTION = {"command": np.random.default_rng(1).normal(size=32).astype(np.float32)}
PACED_STEPS, PACE_HZ = 1_000, 200
FAST_STEPS = 40_000
OFFLINE_STEPS = 60_000


def log(episode: EpisodeRecorder) -> float:
    """Log one step and return what it cost the caller in microseconds."""
    started_ns = time.perf_counter_ns()
    episode.log_step(OBSERVATION, ACTION, 0.5)
    return (time.perf_counter_ns() - started_ns) / 1000


def paced(episode: EpisodeRecorder) -> Iterator[float]:
    """Log at a robot's rate and yield the cost of each step in microseconds."""
    due_s = time.perf_counter()
    for _ in range(PACED_STEPS):
        due_s += 1 / PACE_HZ
        time.sleep(max(0.0, due_s - time.perf_counter()))
        yield log(episode)


def floor() -> Iterator[float]:
    """Yield what encoding alone costs at the same rate (us), with nothing beside it but caches gone cold."""
    for index in range(PACED_STEPS):
        time.sleep(1 / PACE_HZ)
        started_ns = time.perf_counter_ns()
        encode_step({"step_index": index, "observation": OBSERVATION, "action": ACTION, "reward": 0.5})
        yield (time.perf_counter_ns() - started_ns) / 1000


def told(name: str, costs_us: list[float]) -> None:
    p50, p99, most = np.percentile(costs_us, [50, 99, 100])
    print(f"{name:48} p50 {p50:7.1f} us   p99 {p99:7.1f} us   max {most:8.1f} us")


def online(url: str, transport: Transport, options: dict[str, Any]) -> None:
    label = f"{transport}{', spool' if options else ''}"
    with BrainClient(url, transport=transport, **options) as client:
        with client.record() as episode:
            told(f"log_step at {PACE_HZ} Hz ({label})", list(paced(episode)))
        with client.record() as episode:
            started_s = time.perf_counter()
            costs_us = []
            for _ in range(FAST_STEPS):
                # As a robot that is never ahead of the wire by more than the buffer of a socket or so.
                while episode.pending > 20_000:
                    time.sleep(0.001)
                costs_us.append(log(episode))
            told(f"log_step at full speed ({label})", costs_us)
            episode.flush(300)
            rate = FAST_STEPS / (time.perf_counter() - started_s)
        print(f"{f'to durable ({label})':48} {rate:,.0f} steps/s")


def offline(options: dict[str, Any]) -> None:
    label = "spool, max_buffer_bytes 4 MB" if options else "memory"
    client = BrainClient(f"http://127.0.0.1:{free_port()}", **options)
    episode = client.record()
    log(episode)
    before_bytes = psutil.Process().memory_info().rss
    costs_us: list[float] = []
    try:
        for _ in range(OFFLINE_STEPS):
            costs_us.append(log(episode))  # noqa: PERF401  (the last one raises)
    except BufferFullError as error:
        print(f"  full after {len(costs_us)} steps: {error.detail[:60]}...")
    grown_bytes = psutil.Process().memory_info().rss - before_bytes
    told(f"log_step offline ({label})", costs_us)
    print(
        f"{f'memory offline ({label})':48} {grown_bytes / 1e6:.1f} MB for {len(costs_us)} steps, "
        f"{grown_bytes / len(costs_us):.0f} bytes a step ({episode.buffered_bytes / 1e6:.1f} MB accounted)"
    )
    try:
        client.close(0.1)
    except TimeoutError as error:
        print(f"  {str(error)[:90]}...")


def main() -> None:
    told(f"floor: encode_step alone at {PACE_HZ} Hz", list(floor()))
    with tempfile.TemporaryDirectory() as folder:
        with running_daemon(Path(folder) / "brain") as daemon:
            for transport in ("stream", "post"):
                online(daemon.url, transport, {})
            online(daemon.url, "stream", {"spool_dir": Path(folder) / "spool"})
        offline({"spool_dir": Path(folder) / "offline", "max_buffer_bytes": 4 * 1024**2})
        offline({})


if __name__ == "__main__":
    main()
