"""Conversion beside the JSON parser alone, over the same lines in the same run, in turns.

    python -m tests.bench bench_convert

Steps of 128 + 32 floats. A rate holds everything: hashing, parsing, shards, statistics, fsync. The parser's lines
are read one by one and forgotten. Memory is the proportional set size of all processes of a conversion, the most
of ten looks a second. Takes two minutes on two idle cores, and 4 GB beside the repository.
"""

import contextlib
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil

from brain_service.datasets import convert_directory_to_tfrecord
from brain_service.episodes.log_format import encode_line
from tests.bench.rows import Row

STEPS, OBSERVATION, ACTION = 1000, 128, 32
EPISODES, TURNS = 20, 3
LONG_STEPS = 300_000
BIG_BYTES = 2 * 1000**3
UNCHANGED = 10_000
PARSER = "orjson.loads of the same lines"


def _header(episode_id: str) -> bytes:
    features = {
        "observation": {"state": {"dtype": "float32", "shape": [OBSERVATION]}},
        "action": {"command": {"dtype": "float32", "shape": [ACTION]}},
    }
    metadata: dict[str, object] = {
        "environment_id": "bench",
        "xr_mode": "trainer",
        "control_role": "expert",
        "tags": [],
        "robot_id": None,
        "language_instruction": "reach the puck",
    }
    return encode_line(
        {
            "type": "episode",
            "schema_version": "1.1",
            "episode_id": episode_id,
            "created_ns": 1,
            "durability": None,
            "metadata": metadata,
            "features": features,
        }
    )


def _step(index: int, observation: "np.ndarray[Any, Any]", action: "np.ndarray[Any, Any]") -> bytes:
    return encode_line(
        {
            "type": "step",
            "observation": {"state": observation},
            "action": {"command": action},
            "reward": 0.5,
            "is_terminal": False,
            "step_metadata": {
                "timestamp_ns": 10**18 + index * 20_000_000,
                "step_index": index,
                "control_role": "expert",
            },
            "episode_id": "bench",
        }
    )


def _steps(count: int) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((min(count, STEPS), OBSERVATION + ACTION), np.float32)
    for index in range(count):
        row = values[index % len(values)]
        yield _step(index, row[:OBSERVATION], row[OBSERVATION:])


def _write_one(path: Path, episode_id: str, steps: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(_header(episode_id))
        file.writelines(steps)
        file.write(encode_line({"type": "end", "reason": "truncated", "steps": STEPS}))


def _write(folder: Path, episodes: int, steps: bytes, first: int = 0) -> None:
    for n in range(first, first + episodes):
        _write_one(folder / f"e{n:05d}.jsonl", f"e{n:05d}", [steps])


def _parse(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            for line in file:
                orjson.loads(line)


def _seconds(run: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    run()
    return time.perf_counter() - start_s


def _rates(root: Path) -> list[Row]:
    """Each conversion right after the parser: what else the machine does meets both."""
    folder = root / "in"
    _write(folder, EPISODES, b"".join(_steps(STEPS)))
    kinds: dict[str, dict[str, Any]] = {
        "conversion, one process": {"jobs": 1},
        "conversion and gzip archive, one process": {"jobs": 1, "compress": True},
        "conversion, as many processes as it chooses": {},
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for turn in range(TURNS):
        for name, options in kinds.items():
            out = root / f"out-{turn}"
            parser_s = _seconds(lambda: _parse(folder))
            times[name].append(
                (_seconds(partial(convert_directory_to_tfrecord, folder, out, **options)), parser_s)
            )
            shutil.rmtree(out)
    total = EPISODES * STEPS
    rows = []
    for name, pairs in times.items():
        found, parser = np.median(np.array(pairs), axis=0)
        rows.append(Row(name, total / found, "steps/s", PARSER, total / parser))
    return rows


def _long(root: Path) -> list[Row]:
    """One episode of an hour and more: its columns have to be in memory, its lines do not."""
    _write_one(root / "in" / "long.jsonl", "long", _steps(LONG_STEPS))
    parser_s = _seconds(lambda: _parse(root / "in"))
    found_s, peak_bytes = _watched(root / "in", root / "out", jobs=1)
    columns_bytes = LONG_STEPS * (OBSERVATION + ACTION) * 4
    name = f"one episode of {LONG_STEPS:,} steps"
    return [
        Row(f"conversion of {name}", LONG_STEPS / found_s, "steps/s", PARSER, LONG_STEPS / parser_s),
        Row(f"peak memory, {name}", peak_bytes / 1e6, "MB", "its numbers as float32", columns_bytes / 1e6),
    ]


def _convert(folder: Path, out: Path, jobs: int | None, answer: Connection) -> None:
    answer.send(_seconds(lambda: convert_directory_to_tfrecord(folder, out, jobs=jobs)))


def _watched(folder: Path, out: Path, jobs: int | None = None) -> tuple[float, int]:
    """Convert in a process of its own; returns the seconds, and the most bytes that it and its children held."""
    context = multiprocessing.get_context("spawn")
    answers, answer = context.Pipe(duplex=False)
    process = context.Process(target=_convert, args=(folder, out, jobs, answer))
    process.start()
    parent, peak_bytes = psutil.Process(process.pid), 0
    while process.is_alive() and not answers.poll(0.1):
        now_bytes = 0
        for each in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                now_bytes += each.memory_full_info().pss
        peak_bytes = max(peak_bytes, now_bytes)
    seconds = answers.recv()
    process.join()
    return float(seconds), peak_bytes


def _memory(root: Path) -> list[Row]:
    steps = b"".join(_steps(STEPS))
    _write(root / "in", EPISODES, steps)
    _, small_bytes = _watched(root / "in", root / "small")
    _write(root / "in", BIG_BYTES // len(steps) - EPISODES, steps, EPISODES)
    _, big_bytes = _watched(root / "in", root / "big")
    return [Row("peak memory, 2 GB of logs", big_bytes / 1e6, "MB", f"{EPISODES} episodes", small_bytes / 1e6)]


def _look(folder: Path) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            entry.stat()


def _incremental(root: Path) -> list[Row]:
    _write(root / "in", UNCHANGED, b"".join(_steps(3)))
    time.sleep(3.5)  # files younger than the clock's tick are hashed again
    whole_s = _seconds(lambda: convert_directory_to_tfrecord(root / "in", root / "out"))
    look_s = _seconds(lambda: _look(root / "in"))
    again_s = _seconds(lambda: convert_directory_to_tfrecord(root / "in", root / "out"))
    _write(root / "in", 1, b"".join(_steps(STEPS)), UNCHANGED)
    one_s = _seconds(lambda: convert_directory_to_tfrecord(root / "in", root / "out"))
    return [
        Row(
            f"conversion of {UNCHANGED:,} unchanged episodes", again_s, "s", "listing and stat of the same", look_s
        ),
        Row(f"conversion of one new among {UNCHANGED:,} episodes", one_s, "s", "all of them new", whole_s),
    ]


def measure() -> list[Row]:
    """Measure and return the rows."""
    rows = []
    for part in (_rates, _long, _incremental, _memory):
        # Beside the repository: a memory-backed temporary directory would flatter the medium.
        Path("build").mkdir(exist_ok=True)
        root = Path(tempfile.mkdtemp(prefix="bench-convert-", dir="build"))
        try:
            rows += part(root)
        finally:
            shutil.rmtree(root)
    return rows
