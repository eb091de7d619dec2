"""The loader beside tf.data on the same files, how long a trainer waits for it, and the speed of the checks.

    python -m tests.bench bench_loader

128 + 32 floats a step, T = 64, B = 32. Rates count every place of a batch, padding included, on both sides. "Cold"
is right after the files' pages were dropped from memory. The bucket is fake-gcs-server on this machine: simulated,
and so its figure says nothing of a network.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import msgspec
import numpy as np

from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.datasets.loader import Batch, Mode, SequenceLoader
from brain_service.datasets.quality import measure_quality
from brain_service.datasets.verify import verify_dataset
from brain_service.training.config import TrainConfig
from brain_service.training.normalisation import Normaliser
from brain_service.training.objective import normalise_batch
from brain_service.training.step import init_state, make_train_step
from tests.bench.rows import Row
from tests.bench.tf_data import drop_pages
from tests.datasets.random_datasets import write_dataset
from tests.fakes.gcs import fake_gcs

OBSERVATION, ACTION = 128, 32
T, B = 64, 32
EPISODES, LENGTH = 300, 1000
TRAIN_STEPS = 8
UNCACHED_STEPS = 20
TF_COLD, TF_WARM = "tf.data, same shards, cold", "tf.data, same shards"


@contextmanager
def _data() -> Iterator[Path]:
    # Beside the repository: a memory-backed temporary directory would be no disk.
    Path("build").mkdir(exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="bench-loader-", dir="build"))
    try:
        yield root
    finally:
        shutil.rmtree(root)


def _loader(place: Path | str, cache_bytes: int = 256 * 1024**2) -> SequenceLoader:
    return _in_mode(open_dataset(place, cache_bytes=cache_bytes), "windows")


def _in_mode(dataset: Dataset, mode: Mode) -> SequenceLoader:
    length = None if mode == "episodes" else T
    return SequenceLoader(dataset, "train", batch_size=B, sequence_length=length, seed=0, mode=mode)


def _rate(loader: SequenceLoader, epoch: int, steps: int | None = None) -> float:
    """Return the places a second of one epoch's batches, or of its first `steps`."""
    first = epoch * loader.steps_per_epoch
    begun_s = time.perf_counter()
    places = sum(loader.batch(step).mask.size for step in range(first, first + (steps or loader.steps_per_epoch)))
    return places / (time.perf_counter() - begun_s)


def _through_grain(loader: SequenceLoader, epoch: int) -> float:
    """Return the places a second of one epoch's batches, made ahead of time."""
    first = epoch * loader.steps_per_epoch
    batches = loader.batches(first)
    begun_s = time.perf_counter()
    places = sum(next(batches).mask.size for _ in range(loader.steps_per_epoch))
    rate = places / (time.perf_counter() - begun_s)
    batches.close()
    return rate


def measure() -> list[Row]:
    """Measure and return the rows."""
    with _data() as root:
        folder = write_dataset(
            root / "bench" / "1.0.0", [LENGTH] * EPISODES, observation=OBSERVATION, action=ACTION, shards=4
        )
        return [
            *_throughput(folder),
            *_on_a_bucket(folder),
            _waiting(folder),
            _opening(root),
            *_checking(folder),
        ]


def _tf_data(folder: Path) -> list[float]:
    """Return tf.data's places a second, cold and warm, each of the clock and of processor time.

    TensorFlow stays out of this process.
    """
    arguments = [str(folder), *map(str, (OBSERVATION, ACTION, T, B))]
    command = [sys.executable, "-m", "tests.bench.tf_data", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    )
    return [float(rate) for rate in done.stdout.split()]


def _throughput(folder: Path) -> list[Row]:
    cold, cold_used, warm, warm_used = _tf_data(folder)
    size_bytes = sum(path.stat().st_size for path in folder.iterdir())
    rows = []

    def add(name: str, rate: float, peer: float = warm) -> None:
        rows.append(Row(f"loader, {name}", rate, "steps/s", TF_COLD if peer is cold else TF_WARM, peer))

    def both(name: str, measure: Callable[[], float], peer: float, used_peer: float) -> None:
        # Processor time beside the clock: a machine that others use as well does not blur it.
        used_s = time.process_time()
        add(name, measure(), peer)
        used_rate = loader.steps_per_epoch * B * T / (time.process_time() - used_s)
        peer_name = f"{TF_COLD if peer is cold else TF_WARM}, all threads"
        rows.append(Row(f"loader, {name}, a second of processor time", used_rate, "steps", peer_name, used_peer))

    loader = _loader(folder)
    drop_pages(folder)
    both("cold: first epoch from the disk, all checked", lambda: _rate(loader, 0), cold, cold_used)
    both("warm: later epochs", lambda: _rate(loader, 1), warm, warm_used)
    add("first epoch, from the page cache", _rate(_loader(folder), 0))
    loader = _loader(folder)
    drop_pages(folder)
    both("cold, through Grain with prefetch", lambda: _through_grain(loader, 0), cold, cold_used)
    both("warm, through Grain with prefetch", lambda: _through_grain(loader, 1), warm, warm_used)
    modes: tuple[Mode, ...] = ("packed", "streams", "episodes")
    for mode in modes:
        add(f"warm, mode {mode}", _rate(_in_mode(loader.dataset, mode), 1))
    small = _loader(folder, size_bytes // 32)
    _rate(small, 0)
    add("data 32 times the cache", _rate(small, 1))
    add("no cache: every window checks its whole record", _rate(_loader(folder, 0), 0, UNCACHED_STEPS))
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
        Row(f"loader, gs:// (simulated), {name}", rate, "steps/s", "same on the disk", floor_rate)
        for name, rate, floor_rate in zip(names, found, floor, strict=True)
    ]


def _waiting(folder: Path) -> Row:
    """Train for some steps, blocking on each, and return the share of the time in which there was no batch."""
    loader = _loader(folder)
    config = TrainConfig()
    model = config.model_config(OBSERVATION, ACTION)
    normaliser = Normaliser(
        observation_mean=np.zeros(OBSERVATION, np.float32),
        observation_std=np.ones(OBSERVATION, np.float32),
        action_low=np.full(ACTION, -4, np.float32),
        action_high=np.full(ACTION, 4, np.float32),
        reward_mean=np.zeros(1, np.float32),
        reward_std=np.ones(1, np.float32),
    )
    train_step = make_train_step(model, config)
    state = init_state(model, config)
    shares = []
    for prefetch in (2, 0):
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
    return Row("trainer waits for input, development preset", shares[0], "%", "without prefetch", shares[1])


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


def _checking(folder: Path) -> list[Row]:
    """Measure the quality report beside the reading alone, and verifying beside the hash of the same bytes."""
    dataset = open_dataset(folder, cache_bytes=0)
    steps = EPISODES * LENGTH
    shards = list(folder.glob("*.tfrecord-*"))
    megabytes = sum(path.stat().st_size for path in shards) / 1e6

    def read() -> None:
        for index in range(EPISODES):
            dataset.read("train", index)

    def digest() -> None:
        for path in shards:
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")

    return [
        Row(
            "quality report",
            steps / _time_of(lambda: measure_quality(dataset)),
            "steps/s",
            "reading every episode alone",
            steps / _time_of(read),
        ),
        Row(
            "verifying every byte",
            megabytes / _time_of(lambda: verify_dataset(folder)),
            "MB/s",
            "SHA-256 of the same files",
            megabytes / _time_of(digest),
        ),
    ]


def _time_of(call: Callable[[], object]) -> float:
    begun_s = time.perf_counter()
    call()
    return time.perf_counter() - begun_s
