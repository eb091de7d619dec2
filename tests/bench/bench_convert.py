"""Conversion beside the JSON parser alone, over the same lines in the same run, in turns.

    python -m tests.bench bench_convert

Episodes of 1,000 steps of 128 + 32 floats. The rates are those of one process (`jobs=1`), everything included:
hashing, parsing, shards, statistics, fsync. Memory is the proportional set size of all processes of a conversion.
"""

import multiprocessing
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import psutil

from brain_service.datasets import convert_directory_to_tfrecord
from brain_service.episodes.log_format import encode_line
from tests.bench.rows import Row

STEPS, OBSERVATION, ACTION = 1000, 128, 32
EPISODES, TURNS = 40, 3
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


def _steps(count: int, seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    return b"".join(
        encode_line(
            {
                "type": "step",
                "observation": {"state": rng.standard_normal(OBSERVATION, np.float32)},
                "action": {"command": rng.standard_normal(ACTION, np.float32)},
                "reward": 0.5,
                "is_terminal": False,
                "step_metadata": {
                    "timestamp_ns": 10**18 + n * 20_000_000,
                    "step_index": n,
                    "control_role": "expert",
                },
                "episode_id": "bench",
            }
        )
        for n in range(count)
    )


def _write(folder: Path, episodes: int, steps: bytes, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    end = encode_line({"type": "end", "reason": "truncated", "steps": STEPS})
    for n in range(first, first + episodes):
        (folder / f"e{n:05d}.jsonl").write_bytes(_header(f"e{n:05d}") + steps + end)


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
    folder, steps = root / "in", _steps(STEPS)
    _write(folder, EPISODES, steps)
    total = EPISODES * STEPS
    times: dict[str, list[float]] = {"parser": [], "plain": [], "gzip": [], "default": []}
    for turn in range(TURNS):
        for name, options in (("plain", {"jobs": 1}), ("gzip", {"jobs": 1, "compress": True}), ("default", {})):
            out = root / f"{name}-{turn}"
            times["parser"].append(_seconds(lambda: _parse(folder)))
            times[name].append(
                _seconds(lambda out=out, options=options: convert_directory_to_tfrecord(folder, out, **options))  # type: ignore[misc]
            )
            shutil.rmtree(out)
    median = {name: total / float(np.median(found)) for name, found in times.items()}
    labels = {
        "plain": "conversion, one process",
        "gzip": "conversion and gzip archive, one process",
        "default": "conversion, as many processes as it chooses",
    }
    return [Row(label, median[name], "steps/s", PARSER, median["parser"]) for name, label in labels.items()]


def _convert(folder: str, out: str) -> None:
    convert_directory_to_tfrecord(folder, out)


def _peak_pss_bytes(folder: Path, out: Path) -> int:
    """Convert in a process of its own and return the most that it and its children held together."""
    process = multiprocessing.get_context("spawn").Process(target=_convert, args=(str(folder), str(out)))
    process.start()
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            try:
                parent = psutil.Process(process.pid)
                now = sum(each.memory_full_info().pss for each in (parent, *parent.children(recursive=True)))
                peak = max(peak, now)
            except psutil.Error:
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    process.join()
    done.set()
    thread.join()
    if process.exitcode:
        raise RuntimeError(f"the conversion ended with exit code {process.exitcode}")
    return peak


def _memory(root: Path) -> list[Row]:
    steps = _steps(STEPS)
    small, big = EPISODES, BIG_BYTES // len(steps)
    _write(root / "in", small, steps)
    small_bytes = _peak_pss_bytes(root / "in", root / "small")
    _write(root / "in", big - small, steps, small)
    big_bytes = _peak_pss_bytes(root / "in", root / "big")
    return [Row("peak memory, 2 GB of logs", big_bytes / 1e6, "MB", f"{small} episodes", small_bytes / 1e6)]


def _incremental(root: Path) -> list[Row]:
    _write(root / "in", UNCHANGED, _steps(3))
    convert_directory_to_tfrecord(root / "in", root / "out")
    time.sleep(3.5)  # files younger than the clock's tick are hashed again
    convert_directory_to_tfrecord(root / "in", root / "out")
    again_s = _seconds(lambda: convert_directory_to_tfrecord(root / "in", root / "out"))
    _write(root / "in", 1, _steps(STEPS), UNCHANGED)
    one_s = _seconds(lambda: convert_directory_to_tfrecord(root / "in", root / "out"))
    whole_s = _seconds(lambda: convert_directory_to_tfrecord(root / "in", root / "anew"))
    return [
        Row(f"conversion of {UNCHANGED:,} unchanged episodes", again_s, "s", "the same, all new", whole_s),
        Row(f"conversion of one new among {UNCHANGED:,} episodes", one_s, "s", "the same, all new", whole_s),
    ]


def measure() -> list[Row]:
    """Measure and return the rows."""
    rows = []
    for part in (_rates, _incremental, _memory):
        # Beside the repository: a memory-backed temporary directory would flatter the medium.
        Path("build").mkdir(exist_ok=True)
        root = Path(tempfile.mkdtemp(prefix="bench-convert-", dir="build"))
        try:
            rows += part(root)
        finally:
            shutil.rmtree(root)
    return rows
