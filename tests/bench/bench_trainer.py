"""The trainer around its step: what waiting for input, reporting and checkpoints cost a real run."""

import tempfile
import time
from pathlib import Path

import jax

from brain_service.datasets.loader import open_dataset
from brain_service.datasets.statistics import FeatureStatistics, Statistics, write_statistics
from brain_service.training.checkpointing import Checkpoints
from brain_service.training.config import TrainConfig
from brain_service.training.held_out import Standing
from brain_service.training.loop import train
from brain_service.training.run import Run
from brain_service.training.sharding import make_mesh
from brain_service.training.step import TrainState, init_state, make_train_step
from tests.bench.rows import Row
from tests.datasets.random_datasets import write_dataset

OBSERVATION, ACTION = 128, 32
EPISODES, LENGTH = 100, 1000
STEPS = 60


def measure() -> list[Row]:
    """Train the development preset at B = 32, T = 64 for some steps, and the same steps with nothing around."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        dataset = write_dataset(
            root / "bench" / "1.0.0", [LENGTH] * EPISODES, observation=OBSERVATION, action=ACTION, shards=4
        )
        figures = {"state": _normal(OBSERVATION)}, {"command": _normal(ACTION)}, _normal(1)
        write_statistics(dataset, Statistics(*figures, EPISODES * LENGTH, EPISODES))
        config = TrainConfig(steps=STEPS, checkpoint_every=STEPS // 4, log_every=10)
        run = Run(open_dataset(dataset), root / "run", config, make_mesh())
        bare = _bare(run)
        done = train(dataset, run.folder, config)
        saving_s, writing_s = _saving(run, root / "saved")
        return [
            Row("training, development preset, B=32, T=64", done.steps_per_s, "steps/s", "the step alone", bare),
            Row("trainer waits for input", 100 * done.input_wait_share, "%", "aim", 1.0),
            Row(
                "a step stands still for a checkpoint", 1e3 * saving_s, "ms", "until it is sealed", 1e3 * writing_s
            ),
        ]


def _normal(size: int) -> FeatureStatistics:
    """Return the figures of normal numbers, which the random episodes hold."""
    low, high = [-4.0] * size, [4.0] * size
    return FeatureStatistics([0.0] * size, [1.0] * size, low, high, low, high, low, high)


def _bare(run: Run) -> float:
    """Return steps a second on one batch that is there already."""
    step, state = make_train_step(run.model, run.config, run.mesh), init_state(run.model, run.config, run.mesh)
    batch = run.feed.batch(0)
    state, _ = step(state, batch)
    jax.block_until_ready(state)
    begun_s = time.perf_counter()
    for _ in range(STEPS // 2):
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    return STEPS // 2 / (time.perf_counter() - begun_s)


def _saving(run: Run, folder: Path) -> tuple[float, float]:
    """Return the seconds until a save gives the step back, and until the checkpoint is sealed."""
    state: TrainState = init_state(run.model, run.config, run.mesh)
    jax.block_until_ready(state)
    found = []
    with Checkpoints(folder, keep=1) as checkpoints:
        for step in range(1, 4):
            begun_s = time.perf_counter()
            checkpoints.save(state._replace(step=state.step + step), run.meta(Standing()))
            saved_s = time.perf_counter() - begun_s
            checkpoints.wait()
            found.append((saved_s, time.perf_counter() - begun_s))
    # The first one compiles the copy and warms Orbax up.
    return found[-1]
