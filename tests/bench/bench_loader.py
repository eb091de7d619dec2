"""The loader beside tf.data on the same files, and how long a trainer waits for it.

    python -m tests.bench bench_loader

128 + 32 floats a step, T = 64, B = 32. Rates count every place of a batch, padding included, on both sides. The
bucket is fake-gcs-server on this machine: simulated, and so its figure says nothing of a network.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import msgspec
import numpy as np

from brain_service.datasets.dataset import open_dataset
from brain_service.datasets.loader import Batch, Mode, SequenceLoader
from brain_service.training.config import TrainConfig
from brain_service.training.normalisation import Normaliser
from brain_service.training.objective import normalise_batch
from brain_service.training.step import init_state, make_train_step
from tests.bench.rows import Row
from tests.datasets.random_datasets import write_dataset
from tests.fakes.gcs import fake_gcs

OBSERVATION, ACTION = 128, 32
T, B = 64, 32
EPISODES, LENGTH = 400, 1000
TRAIN_STEPS = 10
TF_DATA = "tf.data, same shards"


@contextmanager
def _data() -> Iterator[Path]:
    # Beside the repository: a memory-backed temporary directory would be no disk.
    Path("build").mkdir(exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="bench-loader-", dir="build"))
    try:
        yield root
    finally:
        shutil.rmtree(root)


def _loader(place: Path | str, cache_bytes: int = 256 * 1024**2, mode: Mode = "windows") -> SequenceLoader:
    dataset = open_dataset(place, cache_bytes=cache_bytes)
    length = None if mode == "episodes" else T
    return SequenceLoader(dataset, "train", batch_size=B, sequence_length=length, seed=0, mode=mode)


def _rate(loader: SequenceLoader, epoch: int, steps: int | None = None) -> float:
    """Return the places a second of one epoch's batches, or of its first `steps`."""
    first = epoch * loader.steps_per_epoch
    begun_s = time.perf_counter()
    places = sum(loader.batch(step).mask.size for step in range(first, first + (steps or loader.steps_per_epoch)))
    return places / (time.perf_counter() - begun_s)


def _drop_page_cache(folder: Path) -> None:
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure() -> list[Row]:
    """Measure and return the rows."""
    with _data() as root:
        folder = write_dataset(
            root / "bench" / "1.0.0", [LENGTH] * EPISODES, observation=OBSERVATION, action=ACTION, shards=4
        )
        return [*_throughput(folder), *_on_a_bucket(folder), *_waiting(folder), _opening(root)]


def _throughput(folder: Path) -> list[Row]:
    arguments = [str(folder), *map(str, (OBSERVATION, ACTION, T, B))]
    command = [sys.executable, "-m", "tests.bench.tf_data", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    )
    peer = float(done.stdout)
    size_bytes = sum(path.stat().st_size for path in folder.iterdir())
    rows = []

    def add(name: str, rate: float) -> None:
        rows.append(Row(f"loader, {name}", rate, "steps/s", TF_DATA, peer))

    loader = _loader(folder)
    _drop_page_cache(folder)
    add("first epoch, from the disk, every record checked", _rate(loader, 0))
    add("first epoch, from the page cache", _rate(_loader(folder), 0))
    add("later epochs", _rate(loader, 1))
    small = _loader(folder, size_bytes // 32)
    _rate(small, 0)
    add("data 32 times the cache", _rate(small, 1))
    none = _loader(folder, 0)
    add("no cache: every window checks its whole record", _rate(none, 0))
    modes: tuple[Mode, ...] = ("packed", "streams", "episodes")
    for mode in modes:
        loader = _loader(folder, mode=mode)
        _rate(loader, 0)
        add(f"mode {mode}", _rate(loader, 1))
    with_grain = _loader(folder)
    _rate(with_grain, 0)
    count = with_grain.steps_per_epoch
    batches = with_grain.batches(count)
    next(batches)
    begun_s = time.perf_counter()
    places = sum(next(batches).mask.size for _ in range(count))
    add("through Grain, one thread ahead", places / (time.perf_counter() - begun_s))
    batches.close()
    return rows


def _on_a_bucket(folder: Path) -> list[Row]:
    local = _loader(folder)
    floor = [_rate(local, 0), _rate(local, 1)]
    with fake_gcs() as server:
        server.make_bucket("bench")
        loader = _loader(server.upload(folder, "bench", "datasets/bench/1.0.0"), 1024**3)
        found = [_rate(loader, 0), _rate(loader, 1)]
        names = ("first epoch", "later epochs, within the cache")
        return [
            Row(f"loader, gs:// (simulated), {name}", *pair, "same on the disk", floor_rate)
            for name, pair, floor_rate in zip(names, ((rate, "steps/s") for rate in found), floor, strict=True)
        ]


def _waiting(folder: Path) -> list[Row]:
    """Train for some steps, blocking on each, and return the share of the time in which there was no batch."""
    loader = _loader(folder)
    config = TrainConfig()
    model = config.model_config(OBSERVATION, ACTION)
    scale = {"mean": np.zeros(OBSERVATION, np.float32), "std": np.ones(OBSERVATION, np.float32)}
    normaliser = Normaliser(
        observation_mean=scale["mean"],
        observation_std=scale["std"],
        action_low=np.full(ACTION, -4, np.float32),
        action_high=np.full(ACTION, 4, np.float32),
        reward_mean=np.zeros(1, np.float32),
        reward_std=np.ones(1, np.float32),
    )
    train_step = make_train_step(model, config)
    shares = []
    for prefetch in (2, 0):
        state = init_state(model, config)
        batches = loader.batches(prefetch=prefetch)
        state, _ = train_step(state, normalise_batch(next(batches), normaliser))  # compiles
        jax.block_until_ready(state)
        waited_s, begun_s = 0.0, time.perf_counter()
        for _ in range(TRAIN_STEPS):
            asked_s = time.perf_counter()
            batch: Batch = next(batches)
            waited_s += time.perf_counter() - asked_s
            state, _ = train_step(state, normalise_batch(batch, normaliser))
            jax.block_until_ready(state)
        shares.append(100 * waited_s / (time.perf_counter() - begun_s))
        batches.close()
    return [Row("trainer waits for input, development preset", shares[0], "%", "without prefetch", shares[1])]


def _opening(root: Path) -> Row:
    folder = write_dataset(root / "many" / "1.0.0", [2] * 5_000, shards=1000)
    begun_s = time.perf_counter()
    dataset = open_dataset(folder)
    SequenceLoader(dataset, "train", batch_size=B, sequence_length=T, seed=0, mode="packed")
    opened_s = time.perf_counter() - begun_s
    begun_s = time.perf_counter()
    msgspec.json.decode((folder / "manifest.json").read_bytes())
    for path in folder.iterdir():
        path.stat()
    floor_s = time.perf_counter() - begun_s
    return Row(
        "opening 1,000 shards of 5,000 episodes, and packing them", opened_s, "s", "parse and stat", floor_s
    )
