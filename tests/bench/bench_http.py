"""Steps and actions over HTTP and WebSocket, beside bare endpoints on the same server, over TCP and Unix socket.

    python -m tests.bench bench_http

A step holds 128 + 32 float32 values. The clients are plain sockets, so that what is measured is the daemon and
not an HTTP library; ours and the floor take turns, so that a busy moment of the machine meets both.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import orjson

from tests.bench.rows import Row
from tests.bench.wires import Address, Microseconds, StreamWire, Wire, connect, latencies_us, requests_per_s
from tests.jobs_http import wait_for_job
from tests.processes import Daemon, free_port, running_daemon

OBSERVATION, ACTION = 128, 32
ROUNDS = 5
LATENCIES = 600  # requests a round
RATE_REQUESTS = 1500  # requests a connection and round
BATCHES, BATCH = 60, 64
MESSAGES = 6400  # a round

RNG = np.random.default_rng(0)
STATES = RNG.standard_normal((64, OBSERVATION)).astype(np.float32)
COMMANDS = RNG.standard_normal((64, ACTION)).astype(np.float32)


def step_fields(index: int) -> dict[str, Any]:
    """Return a step as Python values; floats are the shortest text that gives back the float32."""
    values = {"state": STATES[index % 64], "command": COMMANDS[index % 64]}
    text = {name: orjson.loads(orjson.dumps(v, option=orjson.OPT_SERIALIZE_NUMPY)) for name, v in values.items()}
    return {
        "step_index": index,
        "observation": {"state": text["state"]},
        "action": {"command": text["command"]},
        "reward": 0.5,
        "is_terminal": False,
    }


TEMPLATES = [orjson.dumps(step_fields(n)).partition(b",")[2] for n in range(64)]


def json_step(index: int) -> bytes:
    """Return a step as JSON."""
    return b'{"step_index":%d,%b' % (index, TEMPLATES[index % 64])


def _typed(values: np.ndarray[Any, np.dtype[Any]]) -> dict[str, Any]:
    return {"__ndarray__": True, "dtype": "<f4", "shape": list(values.shape), "data": values.tobytes()}


def _msgpack_fields(index: int) -> dict[str, Any]:
    return {
        **step_fields(index),
        "observation": {"state": _typed(STATES[index % 64])},
        "action": {"command": _typed(COMMANDS[index % 64])},
    }


def msgpack_step(index: int) -> bytes:
    """Return a step as msgpack with typed arrays."""
    return msgspec.msgpack.encode(_msgpack_fields(index))


def _json_batch(number: int) -> bytes:
    return b"[%b]" % b",".join(json_step(number * BATCH + n) for n in range(BATCH))


def _msgpack_batch(number: int) -> bytes:
    return msgspec.msgpack.encode([_msgpack_fields(number * BATCH + n) for n in range(BATCH)])


@contextmanager
def floor_server(folder: Path) -> Iterator[tuple[int, Path]]:
    """Run the bare endpoints in a process of their own; yields port and Unix socket."""
    port, path = free_port(), folder / "floor.sock"
    command = [sys.executable, "-m", "tests.bench.floor", str(port), str(path)]
    with subprocess.Popen(command, env=dict(os.environ)) as process:
        try:
            for _ in range(200):
                try:
                    connect(port).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            yield port, path
        finally:
            process.terminate()


def _open(http: httpx.Client, **body: Any) -> str:
    episode_id: str = http.post("/episodes", json={"environment_id": "bench", **body}).json()["episode_id"]
    return episode_id


def _steps_path(http: httpx.Client, **body: Any) -> str:
    return f"/episodes/{_open(http, **body)}/steps"


def _clear(http: httpx.Client) -> None:
    """Delete what was recorded, so that the next measurement has room and learns nothing from it."""
    for episode in http.get("/episodes", params={"limit": 1000}).json()["episodes"]:
        path = f"/episodes/{episode['episode_id']}"
        if episode["state"] == "open":
            http.post(f"{path}/end", json={})
        http.delete(path).raise_for_status()


def measure() -> list[Row]:
    """Measure and return the rows."""
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory() as name,
        floor_server(Path(name)) as (floor_port, floor_socket),
        running_daemon(Path(name) / "brain") as daemon,
        httpx.Client(base_url=daemon.url, timeout=60) as http,
    ):
        places: list[tuple[str, Address, Address]] = [
            ("TCP", daemon.port, floor_port),
            ("Unix socket", daemon.data_dir / "brain.sock", floor_socket),
        ]
        for place, ours, floor in places:
            rows += _single(http, place, ours, floor)
            rows += _batches(http, place, ours, floor)
            rows += _streams(http, place, ours, floor)
            _clear(http)
        rows += _pair("POST step, durability step, TCP", http, daemon.port, floor_port, durability="step")
        _clear(http)
        rows += _measure_infer(http, daemon, floor_port)
    return rows


def _pair(name: str, http: httpx.Client, ours: Address, floor: Address, **body: Any) -> list[Row]:
    path = _steps_path(http, **body)
    wire, floor_wire = Wire(ours), Wire(floor)
    found: list[Microseconds] = []
    bare: list[Microseconds] = []
    latencies_us(floor_wire, "/", [json_step(n) for n in range(LATENCIES)])
    for number in range(ROUNDS + 1):
        bodies = [json_step(number * LATENCIES + n) for n in range(LATENCIES)]
        found.append(latencies_us(wire, path, bodies))
        bare.append(latencies_us(floor_wire, "/", bodies))
    return Row.pair(name, np.concatenate(found[1:]), np.concatenate(bare[1:]))


def _single(http: httpx.Client, place: str, ours: Address, floor: Address) -> list[Row]:
    rows = _pair(f"POST step, {place}", http, ours, floor)
    for connections in (1, 8):
        found, bare = [], []
        for _ in range(3):
            count = RATE_REQUESTS // connections
            paths = [_steps_path(http) for _ in range(connections)]
            found.append(requests_per_s(ours, paths, json_step, count))
            bare.append(requests_per_s(floor, ["/"] * connections, json_step, count))
        name = f"POST step, {place}, {connections} connection{'s' * (connections > 1)}"
        rows.append(_rate(name, "requests/s", found, "bare FastAPI endpoint", bare))
    return rows


def _rate(name: str, unit: str, found: list[float], floor_name: str, floor: list[float]) -> Row:
    return Row(name, float(np.median(found)), unit, floor_name, float(np.median(floor)))


def _batches(http: httpx.Client, place: str, ours: Address, floor: Address) -> list[Row]:
    rows = []
    kinds: list[tuple[str, str, Callable[[int], bytes]]] = [
        ("JSON", "application/json", _json_batch),
        ("typed msgpack", "application/msgpack", _msgpack_batch),
    ]
    for kind, media_type, batch in kinds:
        path = _steps_path(http)
        wire, floor_wire = Wire(ours, media_type), Wire(floor, media_type)
        found, bare = [], []
        for number in range(ROUNDS):
            bodies = [batch(number * BATCHES + n) for n in range(BATCHES)]
            found.append(BATCH * 1e6 / float(np.mean(latencies_us(wire, path, bodies))))
            bare.append(BATCH * 1e6 / float(np.mean(latencies_us(floor_wire, "/", bodies))))
        rows.append(_rate(f"POST {BATCH} steps, {kind}, {place}", "steps/s", found, "bare FastAPI endpoint", bare))
    return rows


def _streams(http: httpx.Client, place: str, ours: Address, floor: Address) -> list[Row]:
    rows = []
    for kind, binary, step in (("JSON", False, json_step), ("typed msgpack", True, msgpack_step)):
        wire, floor_wire = StreamWire(ours, f"/episodes/{_open(http)}/stream"), StreamWire(floor, "/ws")
        found, bare = [], []
        for number in range(ROUNDS):
            first = number * MESSAGES
            frames = [StreamWire.frame(step(first + n), binary=binary) for n in range(MESSAGES)]
            found.append(wire.messages_per_s(frames, _cumulative(first)))
            bare.append(floor_wire.messages_per_s(frames, _counted()))
        rows.append(_rate(f"WebSocket step, {kind}, {place}", "steps/s", found, "bare WebSocket endpoint", bare))
    return rows


def _cumulative(first: int) -> "Callable[[Any], int]":
    def acknowledged(messages: Any) -> int:
        if not messages:
            return 0
        found = messages[-1]
        answer = orjson.loads(found) if found[:1] == b"{" else msgspec.msgpack.decode(found)
        if "step_index" not in answer:
            raise RuntimeError(str(answer))
        return int(answer["step_index"]) - first + 1

    return acknowledged


def _counted() -> "Callable[[Any], int]":
    seen = [0]

    def acknowledged(messages: Any) -> int:
        seen[0] += len(messages)
        return seen[0]

    return acknowledged


def _measure_infer(http: httpx.Client, daemon: Daemon, floor_port: int) -> list[Row]:
    for _ in range(2):  # a pipeline wants a second episode, to evaluate on
        episode = _open(http)
        batch = b"[%b]" % b",".join(map(json_step, range(20)))
        http.post(f"/episodes/{episode}/steps", content=batch).raise_for_status()
        http.post(f"/episodes/{episode}/end", json={}).raise_for_status()
    answer = http.post("/pipeline", json={"preset": "development", "steps": 0})
    job = wait_for_job(daemon.url + answer.headers["location"])
    if job["state"] != "succeeded":
        raise RuntimeError(f"the untrained model was not served: {job['error']}")
    session = http.post("/sessions", json={}).json()["session_id"]

    def ask(index: int) -> bytes:
        asked = {"session_id": session, "step": index, "observation": step_fields(index)["observation"]}
        return json.dumps({**asked, "reward": 0.5, "deadline_ms": 1000}).encode()

    bodies = [ask(n) for n in range(ROUNDS * LATENCIES)]
    floor = latencies_us(Wire(floor_port), "/", bodies)
    found = latencies_us(Wire(daemon.port), "/infer", bodies)
    name = f"POST /infer, {OBSERVATION} floats, development preset"
    return Row.pair(name, found[LATENCIES:], floor[LATENCIES:])
