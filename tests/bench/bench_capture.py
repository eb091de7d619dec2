"""Capture without HTTP: the recorder in a robot's own process, the codec, and group commit.

Each figure stands beside what one would write without it: a logger that opens, appends and closes; a JSON parse
and dump of the same body; one flush for each step.
"""

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvloop

from brain_service import EpisodeLogger
from brain_service.episodes.codec import StepCodec
from brain_service.episodes.header import EpisodeHeader
from brain_service.episodes.store import EpisodeStore
from brain_service.settings import CaptureSettings
from brain_service.spec import EpisodeSpec, Feature
from tests.bench.rows import Row

STEPS = 3000
DURABLE_STEPS = 9600
STATE, COMMAND = 128, 32
CLIENTS = 32
ROUNDS = 3
# What SD cards take for a flush: 2 to 30 ms. This machine's disk takes 0.15.
CARD_FLUSH_S = 0.005

Arrays = list[tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.float32]]]]


def _arrays() -> Arrays:
    rng = np.random.default_rng(0)
    states = rng.uniform(-3, 3, (STEPS, STATE)).astype(np.float32)
    commands = rng.uniform(-1, 1, (STEPS, COMMAND)).astype(np.float32)
    return list(zip(states, commands, strict=True))


def _body(state: np.ndarray[Any, Any], command: np.ndarray[Any, Any], index: int | None) -> bytes:
    step = {"observation": {"state": state}, "action": {"command": command}, "reward": 0.5}
    return orjson.dumps(
        step if index is None else {**step, "step_index": index}, option=orjson.OPT_SERIALIZE_NUMPY
    )


def _per_s(count: int, run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return count / (time.perf_counter() - begun)


def _with_logger(folder: Path, arrays: Arrays) -> float:
    with EpisodeLogger(folder) as logger:
        logger.start_episode(environment_id="bench")

        def record() -> None:
            for state, command in arrays:
                logger.log_step(obs={"state": state}, action={"command": command}, reward=0.5)

        return _per_s(STEPS, record)


def _with_naive_logger(path: Path, arrays: Arrays) -> float:
    def record() -> None:
        for index, (state, command) in enumerate(arrays):
            step = {
                "observation": {"state": state.tolist()},
                "action": {"command": command.tolist()},
                "reward": 0.5,
                "is_terminal": False,
                "step_metadata": {"timestamp_ns": time.time_ns(), "step_index": index},
            }
            with path.open("a") as file:
                file.write(json.dumps(step) + "\n")

    return _per_s(STEPS, record)


def _with_codec(bodies: Sequence[bytes]) -> float:
    spec = EpisodeSpec({"state": Feature("float32", (STATE,))}, {"command": Feature("float32", (COMMAND,))})
    codec = StepCodec.of(EpisodeHeader("bench", 0), spec)
    assert codec is not None

    def encode() -> None:
        for index, body in enumerate(bodies):
            taken = codec.take((body,), "json")
            if taken is None or codec.lines(taken, index) is None:
                raise RuntimeError("the codec left a plain step to the general path")

    return _per_s(len(bodies), encode)


def _with_orjson(bodies: Sequence[bytes]) -> float:
    return _per_s(len(bodies), lambda: [orjson.dumps(orjson.loads(body)) for body in bodies])


async def _grouped(store: EpisodeStore, episodes: Sequence[str], body: bytes, each: int) -> None:
    """Let each client send its steps one after the other, waiting for the medium each time."""

    async def drive(episode: str) -> None:
        for _ in range(each):
            found = await store.ingest(episode, (body,))
            if found.error is not None:
                raise found.error

    await asyncio.gather(*map(drive, episodes))


def _group_commit(folder: Path, body: bytes, count: int) -> float:
    """Return the durable steps a second of all clients, spread over `count` episodes."""
    each = DURABLE_STEPS // CLIENTS
    store = EpisodeStore(folder, CaptureSettings(durability="step", max_open_episodes=CLIENTS + 1))
    store.start()
    try:
        episodes = [store.create({}).episode_id for _ in range(count)] * (CLIENTS // count)
        for episode in set(episodes):
            store.append_json(episode, body)
        return _per_s(each * CLIENTS, lambda: uvloop.run(_grouped(store, episodes, body, each)))
    finally:
        store.close()


def _one_flush_a_step(folder: Path, body: bytes, count: int) -> float:
    """Return the same with a flush for each step, without a daemon or a check around it."""
    each = STEPS // CLIENTS // 3
    files = [os.open(folder / f"floor-{n}", os.O_RDWR | os.O_CREAT | os.O_APPEND) for n in range(count)]

    def record() -> None:
        for _ in range(each):
            for client in range(CLIENTS):
                os.write(files[client % count], body)
                os.fdatasync(files[client % count])

    found = _per_s(each * CLIENTS, record)
    for fd in files:
        os.close(fd)
    return found


@contextlib.contextmanager
def _slow_card() -> Iterator[None]:
    """Let every flush of this process take as long as on a card."""
    flush = os.fdatasync

    def slowly(fd: Any) -> None:
        time.sleep(CARD_FLUSH_S)
        flush(fd)

    os.fdatasync = slowly
    try:
        yield
    finally:
        os.fdatasync = flush


def measure() -> list[Row]:
    """Measure and return the rows, in steps per second: of several rounds, taken in turns, the median."""
    arrays = _arrays()
    bodies = [_body(*pair, index) for index, pair in enumerate(arrays)]
    unnumbered = _body(*arrays[0], None)
    values = f"{STATE}+{COMMAND} floats"
    pairs: dict[tuple[str, str], tuple[list[float], list[float]]] = {}

    def note(name: str, floor_name: str, value: float, floor: float) -> None:
        found = pairs.setdefault((name, floor_name), ([], []))
        found[0].append(value)
        found[1].append(floor)

    for number in range(ROUNDS):
        # Beside the repository: a temporary directory in memory would flush for nothing.
        Path("build").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir="build") as name:
            folder = Path(name)
            note(
                f"EpisodeLogger, {values} a step",
                "open, append a JSON line, close",
                _with_logger(folder / "logger", arrays),
                _with_naive_logger(folder / "naive.jsonl", arrays),
            )
            note(
                f"JSON body of {values} to its log line",
                "orjson parse and dump of the body",
                _with_codec(bodies),
                _with_orjson(bodies),
            )
            for count, what in ((1, "one episode"), (CLIENTS, f"{CLIENTS} episodes")):
                note(
                    f"durability step, {CLIENTS} clients on {what}",
                    "one fdatasync a step",
                    _group_commit(folder / f"grouped-{number}-{count}", unnumbered, count),
                    _one_flush_a_step(folder, unnumbered, count),
                )
                with _slow_card():
                    note(
                        f"the same, simulated: a flush takes {CARD_FLUSH_S * 1e3:g} ms more, as on a card",
                        f"one fdatasync a step on {what}",
                        _group_commit(folder / f"card-{number}-{count}", unnumbered, count),
                        _one_flush_a_step(folder, unnumbered, count),
                    )
    return [
        Row(name, float(np.median(found)), "steps/s", floor_name, float(np.median(floor)))
        for (name, floor_name), (found, floor) in pairs.items()
    ]
