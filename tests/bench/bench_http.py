"""Latency of one controller over one keep-alive connection: steps and actions beside a bare endpoint.

The client is a plain socket, so that what is measured is the daemon and not an HTTP library.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.bench.rows import Row
from tests.jobs_http import wait_for_job
from tests.processes import free_port, running_daemon

REQUESTS = 3000
WARM_UP = 300
FLOATS = 160


class Wire:
    """One keep-alive HTTP/1.1 connection over a plain socket."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Send one request and return status and body of its answer."""
        head = f"POST {path} HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        self._socket.sendall(head.encode() + b"\r\n\r\n" + body)
        data = self._socket.recv(65536)
        while b"\r\n\r\n" not in data:
            data += self._socket.recv(65536)
        head_bytes, _, rest = data.partition(b"\r\n\r\n")
        length = int(head_bytes.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(rest) < length:
            rest += self._socket.recv(65536)
        return int(head_bytes.split(b" ")[1]), rest


def latencies_us(wire: Wire, path: str, body: Callable[[int], bytes]) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the latency in microseconds of each request after the warm-up; every one must succeed."""
    found = np.zeros(REQUESTS)
    for number in range(-WARM_UP, REQUESTS):
        data = body(number + WARM_UP)
        begun = time.perf_counter_ns()
        status, answer = wire.post(path, data)
        ended = time.perf_counter_ns()
        if status != 200:
            raise RuntimeError(f"{path} -> {status}: {answer.decode()}")
        if number >= 0:
            found[number] = (ended - begun) / 1e3
    return found


@contextmanager
def floor_server() -> Iterator[int]:
    """Run the bare endpoint in a process of its own; yields its port."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "tests.bench.floor:app", "--port", str(port)]
    command += ["--http", "httptools", "--loop", "uvloop", "--no-access-log", "--log-level", "warning"]
    with subprocess.Popen(command, env=dict(os.environ)) as process:
        try:
            for _ in range(200):
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            yield port
        finally:
            process.terminate()


def _step(index: int) -> bytes:
    state = [round(0.001 * ((index * 31 + n) % 1000), 6) for n in range(FLOATS)]
    step = {"step_index": index, "observation": {"state": state}, "action": {"command": [0.1, 0.2, 0.3, 0.4]}}
    return json.dumps({**step, "reward": 0.5, "is_terminal": False}).encode()


def _open(http: httpx.Client) -> str:
    episode_id: str = http.post("/episodes", json={"environment_id": "bench"}).json()["episode_id"]
    return episode_id


def measure() -> list[Row]:
    """Measure and return the rows, in microseconds."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, floor_server() as floor_port:
        for durability in ("interval", "step"):
            env = {"BRAIN_CAPTURE__DURABILITY": durability}
            with (
                running_daemon(Path(folder) / durability, env=env) as daemon,
                httpx.Client(base_url=daemon.url, timeout=60) as http,
            ):
                floor = latencies_us(Wire(floor_port), "/", _step)
                episode = _open(http)
                found = latencies_us(Wire(daemon.port), f"/episodes/{episode}/steps", _step)
                rows += Row.pair(f"POST step of {FLOATS} floats, durability {durability}", found, floor)
                http.post(f"/episodes/{episode}/end", json={})
                if durability == "interval":
                    rows += _measure_infer(http, daemon.url, daemon.port, floor_port)
    return rows


def _measure_infer(http: httpx.Client, url: str, port: int, floor_port: int) -> list[Row]:
    held_out = _open(http)  # a pipeline wants a second episode, to evaluate on
    http.post(f"/episodes/{held_out}/steps", content=b"[%b]" % b",".join(map(_step, range(20)))).raise_for_status()
    http.post(f"/episodes/{held_out}/end", json={}).raise_for_status()
    answer = http.post("/pipeline", json={"preset": "development", "steps": 0})
    job = wait_for_job(url + answer.headers["location"])
    if job["state"] != "succeeded":
        raise RuntimeError(f"the untrained model was not served: {job['error']}")
    session = http.post("/sessions", json={}).json()["session_id"]

    def ask(index: int) -> bytes:
        observation = json.loads(_step(index))["observation"]
        asked = {"session_id": session, "step": index, "observation": observation, "reward": 0.5}
        return json.dumps({**asked, "deadline_ms": 1000}).encode()

    floor = latencies_us(Wire(floor_port), "/", ask)
    found = latencies_us(Wire(port), "/infer", ask)
    return Row.pair(f"POST /infer, {FLOATS} floats, development preset", found, floor)
