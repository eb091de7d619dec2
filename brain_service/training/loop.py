"""The training run: data to optimiser steps to checkpoints; resumable at any point, stoppable between steps."""

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from brain_service.datasets.loader import Dataset, SequenceLoader, open_dataset
from brain_service.errors import CorruptDataError, InvalidError
from brain_service.model.config import CoreModelConfig
from brain_service.spec import vector_size
from brain_service.training.checkpointing import Checkpoints
from brain_service.training.config import TrainConfig
from brain_service.training.normalisation import Normaliser
from brain_service.training.objective import Metrics, normalise_batch
from brain_service.training.step import TrainState, init_state, make_train_step

__all__ = ["TrainProgress", "TrainResult", "train"]

REPORT_EVERY_S = 0.5
IMITATED_ROLES = ("expert", "intervention")


@dataclass(frozen=True)
class TrainProgress:
    """Where a run stands after `step` of `steps`; `metrics` are the loss's parts at that step."""

    step: int
    steps: int
    loss: float
    steps_per_s: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. `completed` is false where it was asked to stop; it resumes from `step`."""

    checkpoint_dir: Path
    step: int
    completed: bool
    final_loss: float | None
    """Loss of the last step; None where this call made no step."""
    steps_per_s: float
    duration_s: float
    resumed_from: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON-ready mapping."""
        return asdict(self) | {"checkpoint_dir": str(self.checkpoint_dir)}


def train(
    dataset_dir: str | Path,
    checkpoint_dir: str | Path,
    config: TrainConfig,
    *,
    on_progress: Callable[[TrainProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train on the dataset's `train` split, going on from the newest checkpoint in `checkpoint_dir` that verifies.

    A run that was killed and started again ends with the very same parameters as one that was not: a batch and its
    disturbances are functions of seed and step. With `should_stop` true the run saves and returns.

    Raises:
        InvalidError: the dataset holds nothing to imitate, or the checkpoints are of another run's settings or
            data.
        NotFoundError: there is no dataset, or it has no `train` split.
        CorruptDataError: a shard is damaged, or the loss is not finite.
        UnavailableError: a checkpoint cannot be written.
    """
    dataset = open_dataset(dataset_dir)
    run = _Run(dataset, Path(checkpoint_dir), config)
    with Checkpoints(run.folder, config.keep) as checkpoints:
        state, resumed_from = run.resume(checkpoints)
        return run.go(checkpoints, state, resumed_from, on_progress, should_stop or (lambda: False))


class _Run:
    """One call of `train`: the data, the model and what its checkpoints say about them."""

    def __init__(self, dataset: Dataset, folder: Path, config: TrainConfig) -> None:
        self.folder = folder
        self.config = config
        self.loader = SequenceLoader(
            dataset,
            "train",
            batch_size=config.batch_size,
            sequence_length=config.sequence_length,
            seed=config.seed,
            roles=IMITATED_ROLES,
        )
        _require_examples(dataset)
        self.normaliser = Normaliser.from_statistics(dataset.statistics)
        self.model: CoreModelConfig = config.model_config(
            vector_size(dataset.spec.observation), vector_size(dataset.spec.action)
        )
        self.meta = {
            "model": self.model.to_dict(),
            "train": config.to_dict(),
            "normalisation": self.normaliser.to_dict(),
            "spec": dataset.spec.to_json(),
            "control_period_s": dataset.control_period_s,
            "dataset": {
                "name": dataset.manifest.name,
                "version": dataset.manifest.version,
                "source_digest": dataset.manifest.source_digest,
            },
        }

    def resume(self, checkpoints: Checkpoints) -> tuple[TrainState, int | None]:
        """Return the state to go on from, and its step; damaged checkpoints are deleted on the way."""
        usable = [step for step in reversed(checkpoints.steps()) if self._usable(checkpoints, step)]
        fresh = init_state(self.model, self.config)
        for step in usable:
            try:
                params = checkpoints.restore(step, "params", fresh.params)
                opt_state = checkpoints.restore(step, "opt_state", fresh.opt_state)
            except CorruptDataError:
                checkpoints.discard(step)
                continue
            # Restored arrays are pinned to their device, which compiles to another program than a fresh run's:
            # copied, they give the very same program, and so the same bits.
            restored = TrainState(jnp.asarray(step, jnp.int32), params, opt_state)
            return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), restored), step
        return fresh, None

    def _usable(self, checkpoints: Checkpoints, step: int) -> bool:
        try:
            checkpoints.verify(step)
            self._require_same_run(checkpoints.meta(step), step)
        except CorruptDataError:
            checkpoints.discard(step)
            return False
        return True

    def _require_same_run(self, meta: Mapping[str, Any], step: int) -> None:
        for part in ("model", "normalisation", "spec", "dataset"):
            if meta.get(part) != self.meta[part]:
                raise InvalidError(
                    f"checkpoint {self.folder / str(step)} was made with another {part}; "
                    "give this run a checkpoint directory of its own",
                    field=part,
                )
        free = {"keep", "checkpoint_every"}  # they do not change what is learned
        ours, theirs = cast(dict[str, Any], self.meta["train"]), meta["train"]
        for name in sorted(ours.keys() - free):
            if ours[name] != theirs.get(name):
                raise InvalidError(
                    f"checkpoint {self.folder / str(step)} was made with {name} {theirs.get(name)!r}, "
                    f"not {ours[name]!r}; give this run a checkpoint directory of its own",
                    field=name,
                )

    def go(
        self,
        checkpoints: Checkpoints,
        state: TrainState,
        resumed_from: int | None,
        on_progress: Callable[[TrainProgress], None] | None,
        should_stop: Callable[[], bool],
    ) -> TrainResult:
        """Run the remaining steps; returns with a checkpoint at the last step made."""
        config, first = self.config, int(state.step)
        train_step = make_train_step(self.model, config)
        begun_s = reported_s = time.monotonic()
        step, metrics = first, None
        with closing(self.loader.batches(first)) as batches:
            while step < config.steps and not should_stop():
                state, metrics = train_step(state, normalise_batch(next(batches), self.normaliser))
                step += 1
                now_s = time.monotonic()
                if on_progress and (now_s - reported_s >= REPORT_EVERY_S or step == config.steps):
                    reported_s = now_s
                    on_progress(_progress(step, config.steps, (step - first) / (now_s - begun_s), metrics))
                if step % config.checkpoint_every == 0 and step < config.steps:
                    _finite(metrics, step)
                    checkpoints.save(state, self.meta)
        loss = None if metrics is None else _finite(metrics, step)
        duration_s = time.monotonic() - begun_s
        if step not in checkpoints.steps():
            checkpoints.save(state, self.meta)
        return TrainResult(
            checkpoint_dir=self.folder,
            step=step,
            completed=step >= config.steps,
            final_loss=loss,
            steps_per_s=(step - first) / duration_s if duration_s > 0 else 0.0,
            duration_s=duration_s,
            resumed_from=resumed_from,
        )


def _require_examples(dataset: Dataset) -> None:
    steps = sum(entry.roles.get(role, 0) for entry in dataset.entries("train") for role in IMITATED_ROLES)
    if steps == 0:
        raise InvalidError(
            f"{dataset.location} has no step of a control role {' or '.join(IMITATED_ROLES)} to learn from; "
            "record demonstrations first",
            field="control_role",
        )


def _progress(step: int, steps: int, steps_per_s: float, metrics: Metrics) -> TrainProgress:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    return TrainProgress(step, steps, values["loss"], steps_per_s, values)


def _finite(metrics: Metrics, step: int) -> float:
    # Checked before every save: a run that diverged must not overwrite its last good checkpoint.
    loss = float(metrics["loss"])
    if not np.isfinite(loss):
        raise CorruptDataError(
            f"the loss is {loss} at step {step}; lower learning_rate (the last good checkpoint is kept)"
        )
    return loss
