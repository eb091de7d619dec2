"""What an action costs over HTTP and WebSocket, alone, beside a training, and batched; how soon the first comes.

    python -m tests.bench bench_serving

Beside them in the same run: a bare FastAPI endpoint, the compiled step alone, a plain FastAPI endpoint around the
same jitted model, and openpi's websocket pattern around it. Clients are plain sockets.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import msgspec
import numpy as np
import uvloop

from brain_service.inference.backends import BACKENDS
from brain_service.inference.served_model import ServedModel
from brain_service.settings import InferenceSettings
from tests.bench.bench_http import floor_server
from tests.bench.bench_inference import ACTION, OBSERVATION, _child
from tests.bench.rows import Row
from tests.bench.wires import Microseconds, StreamWire, Wire, connect, latencies_us
from tests.processes import free_port

PRESET = "development"
ROUNDS, REQUESTS = 5, 400
SESSIONS, STEPS = 64, 100
STATES = np.random.default_rng(0).standard_normal((64, OBSERVATION)).astype(np.float32)


def measure() -> list[Row]:
    """Measure and return the rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data_dir = folder / "brain"
        model_id = _child(data_dir, "export", PRESET, "0")["model_id"]
        (data_dir / "models" / "active").symlink_to(model_id)
        step_us = _child(data_dir, "step", model_id)["p50"]
        rows = uvloop.run(_batched(data_dir, model_id))
        _started(data_dir)  # fills the compile cache
        rows += _startup(data_dir)
        with (
            floor_server(folder) as (floor_port, _),
            _peers(data_dir, model_id) as (http_port, websocket_port),
            _daemon(data_dir) as port,
        ):
            _wait_for_action(port)
            rows += _single(port, floor_port, http_port, websocket_port, step_us)
            rows += _beside_training(port)
    return rows


def _single(port: int, floor_port: int, http_port: int, websocket_port: int, step_us: float) -> list[Row]:
    """Ours, the floor and the peers take turns, so that a busy moment of the machine meets all."""
    robot, floor, plain = _Robot(port), Wire(floor_port), Wire(http_port)
    openpi, stream = _Stream(websocket_port, "/"), None
    openpi.receive()
    with contextlib.suppress(RuntimeError):
        # The daemon may be of a version without this route.
        stream = _Stream(port, "/infer/stream")
    found: dict[str, list[Microseconds]] = {}

    def note(name: str, latencies: Microseconds) -> None:
        found.setdefault(name, []).append(latencies)

    robot.start()
    streamer = _Robot(port)
    streamer.start()
    for _ in range(ROUNDS + 1):
        bodies = robot.bodies(REQUESTS)
        note("infer", latencies_us(robot.wire, "/infer", bodies))
        note("floor", latencies_us(floor, "/", bodies))
        note("plain", latencies_us(plain, "/infer", [_state_json(n) for n in range(REQUESTS)]))
        packed = [msgspec.msgpack.encode({"state": STATES[n % 64].tobytes()}) for n in range(REQUESTS)]
        note("openpi", openpi.latencies_us(packed, binary=True))
        if stream is not None:
            note("stream", stream.latencies_us(streamer.bodies(REQUESTS), binary=False))
    p50 = {name: float(np.median(np.concatenate(rounds[1:]))) for name, rounds in found.items()}
    budget_us = p50["floor"] + 1.2 * step_us + 150
    rows = [
        Row("POST /infer, p50", p50["infer"], "us", "bare FastAPI + 1.2 steps + 150 us", budget_us),
        Row("POST /infer, p50", p50["infer"], "us", "plain FastAPI + jitted model", p50["plain"]),
        Row("POST /infer, p50", p50["infer"], "us", "openpi's websocket pattern", p50["openpi"]),
    ]
    if "stream" in p50:
        rows += [
            Row("WS /infer/stream, p50", p50["stream"], "us", "POST /infer", p50["infer"]),
            Row("WS /infer/stream, p50", p50["stream"], "us", "openpi's websocket pattern", p50["openpi"]),
        ]
    return rows


def _beside_training(port: int) -> list[Row]:
    """A real training by the job runner, at SCHED_IDLE; the same requests before it and beside it."""
    robot = _Robot(port)
    robot.start()
    idle = latencies_us(robot.wire, "/infer", robot.bodies(ROUNDS * REQUESTS))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        for _ in range(3):
            episode = http.post("/episodes", json={"environment_id": "bench"}).json()["episode_id"]
            steps = [
                {"observation": {"state": STATES[n % 64].tolist()}, "action": {"command": [0.1] * ACTION}}
                for n in range(200)
            ]
            http.post(f"/episodes/{episode}/steps", json=steps).raise_for_status()
            http.post(f"/episodes/{episode}/end", json={"reason": "truncated"}).raise_for_status()
        job = http.post("/train", json={"preset": PRESET, "steps": 1_000_000}).headers["location"]
        give_up = time.monotonic() + 600
        while not 0.0 < http.get(job).json()["progress"] < 1.0:
            if time.monotonic() > give_up or http.get(job).json()["state"] == "failed":
                raise RuntimeError(f"no training: {http.get(job).json()}")
            time.sleep(0.2)
        busy = latencies_us(robot.wire, "/infer", robot.bodies(ROUNDS * REQUESTS))
        http.delete(job).raise_for_status()
    idle_p99, busy_p99 = float(np.percentile(idle, 99)), float(np.percentile(busy, 99))
    return [Row("POST /infer beside a training, p99", busy_p99, "us", "without one", idle_p99)]


async def _batched(data_dir: Path, model_id: str) -> list[Row]:
    """Steps a second of one worker: one session after the other, and all at once."""
    # Of the two runtimes on the CPU the one that batches.
    settings = InferenceSettings(backends=("cpu",), cpu_runtime="jax")
    model = await ServedModel.load(data_dir / "models" / model_id, settings, data_dir / "cache")
    rows = [model.take_row() for _ in range(SESSIONS)]
    slots = [0] * SESSIONS
    for number, row in enumerate(rows):
        row.request[0, :OBSERVATION] = STATES[number]

    async def drive(number: int, steps: int) -> None:
        for _ in range(steps):
            await model.submit(rows[number], slots[number], 2**63).waiter
            slots[number] = 1 - slots[number]

    async def rate(sessions: Sequence[int], steps: int) -> float:
        begun_s = time.perf_counter()
        await asyncio.gather(*(drive(number, steps) for number in sessions))
        return len(sessions) * steps / (time.perf_counter() - begun_s)

    while not model.status()["batches"]:
        await rate(range(SESSIONS), 1)
    alone, together = [], []
    for _ in range(ROUNDS):
        alone.append(await rate([0], 10 * STEPS))
        together.append(await rate(range(SESSIONS), STEPS))
    await model.close()
    found, floor = float(np.median(together)), float(np.median(alone))
    return [Row(f"worker, {SESSIONS} sessions batched", found, "steps/s", "one at a time", floor)]


def _startup(data_dir: Path) -> list[Row]:
    found = [_started(data_dir) for _ in range(3)]
    capturing, acting = (float(np.median(times)) for times in zip(*found, strict=True))
    return [
        Row("daemon started to first step captured", capturing, "s", "allowed", 1.0),
        Row("daemon started to first action, warm compile cache", acting, "s", "allowed", 5.0),
    ]


def _started(data_dir: Path) -> tuple[float, float]:
    """Return the seconds from the start of a daemon to its first captured step, and to its first action."""
    begun_s = time.perf_counter()
    with _daemon(data_dir) as port:
        _capture(port)
        capturing_s = time.perf_counter() - begun_s
        _wait_for_action(port)
        return capturing_s, time.perf_counter() - begun_s


def _capture(port: int) -> None:
    wire = Wire(port)
    status, answer = wire.post("/episodes", b'{"environment_id":"bench"}')
    path = f"/episodes/{json.loads(answer)['episode_id']}"
    body = json.dumps({"observation": {"state": [0.0]}, "action": {"command": [0.0]}}).encode()
    for where, what in ((f"{path}/steps", body), (f"{path}/end", b"{}")):
        status, answer = wire.post(where, what)
        if status != 200:
            raise RuntimeError(f"{where}: {answer.decode()}")


def _wait_for_action(port: int) -> None:
    robot = _Robot(port)
    while robot.wire.post("/sessions", b"{}")[0] != 201:
        time.sleep(0.005)
    robot.start()
    latencies_us(robot.wire, "/infer", robot.bodies(1))


@contextlib.contextmanager
def _daemon(data_dir: Path) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "brain_service", "serve", "--data-dir", str(data_dir), "--port", str(port)]
    environment = {**os.environ, "BRAIN_CACHE_DIR": str(data_dir / "cache")}
    # A robot's installation has its modules compiled.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            _wait_for_port(port)
            yield port
        finally:
            process.terminate()


@contextlib.contextmanager
def _peers(data_dir: Path, model_id: str) -> Iterator[tuple[int, int]]:
    ports = free_port(), free_port()
    bundle = str(data_dir / "models" / model_id)
    command = [sys.executable, "-m", "tests.bench.peers", *map(str, ports), bundle, str(data_dir / "cache")]
    with subprocess.Popen(command, env={**os.environ, **BACKENDS["jax-cpu"].environment}) as process:
        try:
            for port in ports:
                _wait_for_port(port)
            yield ports
        finally:
            process.terminate()


def _wait_for_port(port: int) -> None:
    give_up = time.monotonic() + 120
    while True:
        try:
            connect(port).close()
        except ConnectionRefusedError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.002)
        else:
            return


class _Robot:
    """A session over one connection, its steps counted."""

    def __init__(self, port: int) -> None:
        self.wire = Wire(port)
        self._session = ""
        self._step = 0

    def start(self) -> None:
        """Start a session."""
        status, answer = self.wire.post("/sessions", b"{}")
        if status != 201:
            raise RuntimeError(answer.decode())
        self._session, self._step = json.loads(answer)["session_id"], 0

    def bodies(self, count: int) -> list[bytes]:
        """Return the bodies of the next steps."""
        first, self._step = self._step, self._step + count
        return [self._body(step) for step in range(first, self._step)]

    def _body(self, step: int) -> bytes:
        observation = {"state": STATES[step % 64].tolist()}
        asked = {"session_id": self._session, "step": step, "observation": observation, "deadline_ms": 10_000}
        return json.dumps(asked).encode()


def _state_json(number: int) -> bytes:
    return json.dumps({"state": STATES[number % 64].tolist()}).encode()


class _Stream:
    """One WebSocket on which each message waits for its answer."""

    def __init__(self, port: int, path: str) -> None:
        self._wire = StreamWire(port, path)

    def receive(self) -> bytes:
        """Wait for one message."""
        while not (messages := self._wire.messages()):
            pass
        return messages[0]

    def latencies_us(self, bodies: Sequence[bytes], *, binary: bool) -> Microseconds:
        """Return the latency in microseconds of each message."""
        found = np.zeros(len(bodies))
        for number, frame in enumerate([StreamWire.frame(body, binary=binary) for body in bodies]):
            begun_ns = time.perf_counter_ns()
            self._wire.socket.sendall(frame)
            self.receive()
            found[number] = (time.perf_counter_ns() - begun_ns) / 1e3
        return found
