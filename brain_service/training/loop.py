"""The training run: data to optimiser steps to checkpoints; resumable at any point, stoppable between steps."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from brain_service.datasets.loader import open_dataset
from brain_service.datasets.pipeline import BatchIterator
from brain_service.errors import CorruptDataError
from brain_service.training.checkpointing import Checkpoints
from brain_service.training.config import TrainConfig
from brain_service.training.feed import InputClock
from brain_service.training.held_out import Standing
from brain_service.training.hosts import is_first, meet
from brain_service.training.metrics import MetricsLog
from brain_service.training.objective import Metrics, Sequences
from brain_service.training.phases import PhaseClock
from brain_service.training.run import Run
from brain_service.training.sharding import make_mesh
from brain_service.training.step import TrainState, make_train_step

__all__ = ["Hooks", "TrainProgress", "TrainResult", "train", "train_run"]

log = logging.getLogger(__name__)

REPORT_EVERY_S = 0.5
PAUSE_POLL_S = 0.1


@dataclass(frozen=True)
class TrainProgress:
    """Where a run stands after `step` of `steps`; `metrics` are the loss's parts at that step.

    Where the run looks at a held-out loss, the last one is among them, with its step (`held_out_step`).
    """

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
    """Steps a second, without the first one (which compiles) and without pauses."""
    duration_s: float
    resumed_from: int | None
    stopped_early: bool = False
    """Whether the held-out loss had stopped falling before the last step."""
    best_step: int | None = None
    """Step of the best held-out loss; its checkpoint is kept and is the one that is loaded by default."""
    best_loss: float | None = None
    """That loss; None where the run never looked."""
    input_wait_share: float = 0.0
    """Share of the time, 0..1, in which the devices stood idle for want of a batch (errs upwards)."""
    checkpoint_wait_s: float = 0.0
    """Time in which the steps stood still for a checkpoint's copy, or for the one before it to be written."""
    paused_s: float = 0.0
    """Time in which a gate held the run."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON-ready mapping."""
        return asdict(self) | {"checkpoint_dir": str(self.checkpoint_dir)}


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a run asks and tells between its steps."""

    on_progress: Callable[[TrainProgress], None] = lambda _: None
    """Told about twice a second, and at the last step."""
    should_stop: Callable[[], bool] = lambda: False
    """With true the run saves and returns; it is asked in pauses too."""
    pause_reason: Callable[[], str] = lambda: ""
    """Why the run must rest now (heat, power), or nothing; asked before every step."""
    on_pause: Callable[[str], None] = lambda _: None
    """Told the reason when a pause begins or its reason changes, and an empty one when it is over."""
    should_stop_at: Callable[[int], bool] = lambda _: False
    """As `should_stop`, with the number of steps made; on several hosts it must answer all of them alike."""
    on_step: Callable[[int], None] = lambda _: None
    """Told the number of steps made after every step: it is under way then, not done."""
    phases: PhaseClock = field(default_factory=PhaseClock)
    """Told what the time goes into: `compile` (the first step), `input`, `step`, `checkpoint`, `pause`."""
    more_metrics: Callable[[], Mapping[str, float]] = dict
    """What else a line of the curves is to hold."""


def train(
    dataset_dir: str | Path,
    checkpoint_dir: str | Path,
    config: TrainConfig,
    *,
    on_progress: Callable[[TrainProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    hooks: Hooks | None = None,
    mesh: Mesh | None = None,
) -> TrainResult:
    """Train on the dataset's `train` split, going on from the newest checkpoint in `checkpoint_dir` that verifies.

    A run that was killed and started again ends with the very same parameters as one that was not: a batch and its
    disturbances are functions of seed and step, and what else a step depends on is in the checkpoint. With
    `should_stop` true the run saves and returns. `on_progress` and `should_stop` are short for the hooks of these
    names. The mesh (default: all devices of this process) says where arrays live.

    Raises:
        InvalidError: the dataset holds nothing to imitate or does not fit the settings, or the checkpoints are of
            another run's settings or data. Nothing was trained.
        NotFoundError: there is no dataset, or it has no `train` split.
        CorruptDataError: a shard is damaged, a number in the data is not finite, or the loss is not.
        UnavailableError: a checkpoint or the metrics cannot be written.
    """
    hooks = hooks or Hooks()
    hooks = replace(
        hooks,
        on_progress=on_progress or hooks.on_progress,
        should_stop=should_stop or hooks.should_stop,
    )
    folder = Path(checkpoint_dir)
    return train_run(Run(open_dataset(dataset_dir), folder, config, mesh or make_mesh()), hooks, folder)


def train_run(run: Run, hooks: Hooks, curves: Path) -> TrainResult:
    """Do `train` for a run whose parts are there, its checkpoints perhaps on a bucket; its curves go to `curves`.

    On several hosts all processes call it; the first one writes the curves.

    Raises:
        InvalidError: the checkpoints are of another run's settings or data.
        CorruptDataError: a shard is damaged, a number in the data is not finite, or the loss is not.
        UnavailableError: a checkpoint or the metrics cannot be written.
    """
    with Checkpoints(run.folder, run.config.keep) as checkpoints:
        state, standing, resumed_from = run.resume(checkpoints)
        return _Loop(run, checkpoints, hooks, curves, state, standing, resumed_from).go()


@dataclass
class _Clock:
    """Where the time of a call went, in seconds since the first step was done: it compiles."""

    begun_s: float = field(default_factory=time.monotonic)
    steps: int = 0
    paused_s: float = 0.0
    checkpoint_s: float = 0.0
    input: InputClock = field(default_factory=InputClock)

    def stepped(self, metrics: Metrics) -> None:
        """Count a step; the first one starts the clock."""
        self.steps += 1
        if self.steps == 1:
            jax.block_until_ready(metrics)
            self.begun_s, self.paused_s, self.checkpoint_s = time.monotonic(), 0.0, 0.0
            self.input.waited_s = 0.0

    @property
    def worked_s(self) -> float:
        return max(time.monotonic() - self.begun_s - self.paused_s, 1e-9)

    @property
    def steps_per_s(self) -> float:
        return max(self.steps - 1, 0) / self.worked_s

    @property
    def input_wait_share(self) -> float:
        return min(self.input.waited_s / self.worked_s, 1.0) if self.steps > 1 else 0.0


class _Loop:
    """One call of `train` once its state is there."""

    def __init__(
        self,
        run: Run,
        checkpoints: Checkpoints,
        hooks: Hooks,
        curves: Path,
        state: TrainState,
        standing: Standing,
        resumed_from: int | None,
    ) -> None:
        self.run = run
        self.config = run.config
        self.checkpoints = checkpoints
        self.hooks = hooks
        self.phases = hooks.phases
        self.curves = curves
        self.state = state
        self.standing = standing
        self.resumed_from = resumed_from
        self.step = resumed_from or 0
        self.saved = resumed_from
        self.metrics: Metrics | None = None
        self.held_out: dict[str, float] = {}
        self.clock = _Clock()
        self._reported_s = time.monotonic()

    def go(self) -> TrainResult:
        """Run the remaining steps; returns with a sealed checkpoint at the last step made."""
        begun_s = time.monotonic()
        if self._remaining():
            self._steps()
        loss = None if self.metrics is None else self._finite()["loss"]
        self._save()
        self.phases.begin("checkpoint")
        self.checkpoints.wait()
        return TrainResult(
            checkpoint_dir=Path(self.run.folder),
            step=self.step,
            completed=not self._remaining(),
            final_loss=loss,
            steps_per_s=self.clock.steps_per_s,
            duration_s=time.monotonic() - begun_s,
            resumed_from=self.resumed_from,
            stopped_early=self._stale() and self.step < self.config.steps,
            best_step=self.standing.best_step,
            best_loss=self.standing.best_loss,
            input_wait_share=self.clock.input_wait_share,
            checkpoint_wait_s=self.clock.checkpoint_s,
            paused_s=self.clock.paused_s,
        )

    def _stale(self) -> bool:
        return 0 < self.config.patience <= self.standing.stale

    def _remaining(self) -> bool:
        return self.step < self.config.steps and not self._stale()

    def _steps(self) -> None:
        train_step = make_train_step(self.run.model, self.config, self.run.mesh)
        with ExitStack() as stack:
            curves = stack.enter_context(self._open_curves())
            batches = stack.enter_context(closing(self.run.feed.batches(self.step)))
            while self._remaining() and not self._told_to_stop():
                if self._rest():
                    continue
                sequences = self._take(batches)
                if self.metrics is not None:
                    # At most one step is on its way: a stop takes effect at once, and no queue builds up.
                    jax.block_until_ready(self.metrics)
                if self.metrics is None:
                    self._meet_compiled(train_step, sequences)
                self.state, self.metrics = train_step(self.state, sequences)
                self.step += 1
                self.clock.stepped(self.metrics)
                self.hooks.on_step(self.step)
                self.phases.begin("step")
                self._between(curves)

    def _meet_compiled(self, train_step: Any, sequences: Sequences) -> None:
        """Have all hosts compile before any of them runs the first step: a collective waits half a minute only.

        The call that follows finds what was compiled here.
        """
        if jax.process_count() > 1:
            train_step.lower(self.state, sequences).compile()
            meet("compiled")

    def _open_curves(self) -> AbstractContextManager[MetricsLog | None]:
        return MetricsLog(self.curves, self.step) if is_first() else nullcontext()

    def _told_to_stop(self) -> bool:
        return self.hooks.should_stop() or self.hooks.should_stop_at(self.step)

    def _take(self, batches: BatchIterator[Sequences]) -> Sequences:
        self.phases.begin("input")
        sequences = self.clock.input.take(batches, self._busy)
        if self._busy():
            self.phases.was("step")  # the devices worked meanwhile
        self.phases.begin("step" if self.clock.steps else "compile")
        return sequences

    def _busy(self) -> bool:
        loss: Any = None if self.metrics is None else self.metrics["loss"]
        return loss is not None and not loss.is_ready()

    def _between(self, curves: MetricsLog | None) -> None:
        """Do what is due after a step: report, look at the held-out loss, log, save."""
        config, last = self.config, self.step == self.config.steps
        extra: dict[str, float] = {}
        if time.monotonic() - self._reported_s >= REPORT_EVERY_S or last:
            self._report()
        better = False
        if config.evaluate_every and (self.step % config.evaluate_every == 0 or last):
            extra["held_out_loss"] = self.run.held_out_loss(self.state.params)
            self.standing = self.standing.after(self.step, extra["held_out_loss"])
            better = self.standing.best_step == self.step
            self.held_out = extra | {"held_out_step": self.step}
        if self.step % config.log_every == 0 or last or extra:
            values = self._finite()
            if curves is not None:
                curves.write(self.step, values | extra | self._pace() | dict(self.hooks.more_metrics()))
        if better or self.step % config.checkpoint_every == 0:
            self._save()

    def _pace(self) -> dict[str, float]:
        return {"steps_per_s": self.clock.steps_per_s, "input_wait_share": self.clock.input_wait_share}

    def _report(self) -> None:
        self._reported_s = time.monotonic()
        values = self._finite()
        progress = TrainProgress(
            self.step,
            self.config.steps,
            values["loss"],
            self.clock.steps_per_s,
            values | self._pace() | self.held_out,
        )
        self.hooks.on_progress(progress)

    def _finite(self) -> dict[str, float]:
        """Return the last step's metrics as numbers.

        Raises:
            CorruptDataError: the loss or its gradient is not finite. Checked before every save: a run that
                diverged must not overwrite its last good checkpoint.
        """
        assert self.metrics is not None
        values = {name: float(value) for name, value in jax.device_get(self.metrics).items()}
        for name in ("loss", "gradient_norm"):
            if not np.isfinite(values[name]):
                raise CorruptDataError(
                    f"the {name.replace('_', ' ')} is {values[name]} at step {self.step}; lower learning_rate "
                    "(the last good checkpoint is kept)"
                )
        return values

    def _save(self) -> None:
        if self.saved == self.step:
            return
        if self.metrics is not None:
            self._finite()
        begun_s = time.monotonic()
        self.phases.begin("checkpoint")
        self.checkpoints.save(self.state, self.run.meta(self.standing), best=self.standing.best_step)
        self.phases.begin("step")
        self.clock.checkpoint_s += time.monotonic() - begun_s
        self.saved = self.step

    def _rest(self) -> bool:
        """Wait while a gate holds the run; true if it did. What was learned is saved first: power may go."""
        reason = told = self.hooks.pause_reason()
        if not reason:
            return False
        begun_s = time.monotonic()
        log.warning("training pauses", extra={"step": self.step, "reason": reason})
        self._save()
        self.checkpoints.wait()
        self.hooks.on_pause(reason)
        self.phases.begin("pause")
        while reason and not self.hooks.should_stop():
            time.sleep(PAUSE_POLL_S)
            reason = self.hooks.pause_reason()
            if reason and reason != told:
                self.hooks.on_pause(reason)
                told = reason
        self.hooks.on_pause("")
        self.phases.begin("step")
        self.clock.paused_s += time.monotonic() - begun_s
        return True
