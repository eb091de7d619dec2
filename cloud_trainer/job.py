"""The job: train on a dataset, evaluate on its held-out episodes, export a bundle; resumable at every point."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from brain_service.datasets.loader import Mode
from brain_service.export.jax_step import export_jax
from brain_service.training.config import TrainConfig
from brain_service.training.evaluation import evaluate
from brain_service.training.loop import TrainProgress, train
from brain_service.training.sharding import make_mesh

__all__ = ["JobOptions", "run_job"]

REPORT_EVERY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What one run is asked to do; see `cloud-trainer --help`."""

    data_path: Path
    output_dir: Path
    preset: str
    batch_size: int
    num_steps: int
    learning_rate: float
    seed: int = 0
    mode: Mode = "windows"
    sequence_length: int | None = 64
    checkpoint_every: int = 500
    fsdp: int = 1
    """Devices that share one copy of the parameters; the others hold copies (data parallel)."""


def run_job(options: JobOptions, report: Callable[[str], None]) -> Path:
    """Run the job and return the bundle's directory; `report` gets a line of progress now and then.

    A killed job that is started again with the same options goes on from its newest checkpoint.

    Raises:
        BrainError: the dataset, an option or a checkpoint is unusable; the message tells which and why.
    """
    config = TrainConfig(
        preset=options.preset,
        steps=options.num_steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
        mode=options.mode,
        sequence_length=options.sequence_length,
        checkpoint_every=options.checkpoint_every,
    )
    checkpoints = options.output_dir / "checkpoints"

    told_s = float("-inf")

    def on_progress(now: TrainProgress) -> None:
        # By the clock: the loop tells of a step now and then, hardly ever of a round one.
        nonlocal told_s
        if time.monotonic() - told_s >= REPORT_EVERY_S or now.step == now.steps:
            told_s = time.monotonic()
            report(f"step {now.step}/{now.steps} loss {now.loss:.4f} {now.steps_per_s:.1f} steps/s")

    train(options.data_path, checkpoints, config, on_progress=on_progress, mesh=make_mesh(options.fsdp))
    evaluation = evaluate(checkpoints, options.data_path).to_json()
    return export_jax(checkpoints, options.output_dir / "models", evaluation=evaluation)
