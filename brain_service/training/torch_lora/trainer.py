"""The fine-tuning run: the JAX trainer's batches and disturbances, torch's gradients on the adapters alone.

The state is saved every few steps in one file; a run that was killed and started again ends with the same bits,
since a batch and its disturbances are functions of seed and step. The held-out loss is that of the merged
parameters in JAX: of what would be served.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brain_service.datasets.dataset import Dataset, open_dataset
from brain_service.errors import CorruptDataError
from brain_service.training.loop import Hooks, TrainProgress
from brain_service.training.metrics import MetricsLog
from brain_service.training.objective import Sequences
from brain_service.training.torch_lora.adapters import save_adapters
from brain_service.training.torch_lora.base import LoraBase
from brain_service.training.torch_lora.config import LoraConfig
from brain_service.training.torch_lora.episodes import NewestEpisodes, require_episodes
from brain_service.training.torch_lora.objective import losses, to_tensors
from brain_service.training.torch_lora.parts import Parts
from brain_service.training.torch_lora.state import restore_state, save_state

__all__ = ["LoraResult", "train_adapters"]

log = logging.getLogger(__name__)

REPORT_EVERY_S = 0.5
PAUSE_POLL_S = 0.1


@dataclass(frozen=True)
class LoraResult:
    """How a fine-tuning ended. `completed` is false where it was asked to stop: it then goes on from `step`."""

    adapters_dir: Path
    step: int
    completed: bool
    final_loss: float | None
    """Loss of the last step; None where this call made no step."""
    steps_per_s: float
    duration_s: float
    resumed_from: int | None
    ended_by: str
    """`steps`, `time` (max_wall_time_s), `held-out loss` (it no longer fell) or `request`."""
    best_step: int | None
    """Step of the best held-out loss, 0 for the base itself: whose adapters were saved."""
    best_loss: float | None
    paused_s: float
    episodes: int
    """Episodes that were there to imitate or to be held out."""
    parameters: int
    """Numbers in the adapters."""
    share: float
    """The same as a share of the base's parameters."""
    sha256: str | None
    """Of the adapters' file; None where the run is not over."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON-ready mapping."""
        return asdict(self) | {"adapters_dir": str(self.adapters_dir)}


def train_adapters(
    dataset_dir: str | Path, folder: Path, base: LoraBase, config: LoraConfig, hooks: Hooks | None = None
) -> LoraResult:
    """Train adapters for `base` on the dataset's training split, going on from what `folder` holds of the run.

    Raises:
        InvalidError: the dataset has too few episodes, nothing to imitate or other features than the base, a layer
            is unknown, or the folder holds another run. Nothing was trained.
        NotFoundError: there is no dataset, or it has no `train` split.
        CorruptDataError: a shard or the run's state is damaged, or the loss is not finite.
        UnavailableError: the medium is full or read-only.
    """
    dataset = open_dataset(dataset_dir)
    base.require_fit(dataset)
    episodes = require_episodes(dataset, config.min_episodes)
    chosen = NewestEpisodes(dataset.folder, config.max_episodes)
    with _deterministic():
        return _Loop(chosen, folder, base, config, hooks or Hooks(), episodes).go()


@contextmanager
def _deterministic() -> Iterator[None]:
    """Have torch give the same bits again, on any number of cores: on one thread.

    The products of a step are small. Several threads gain little on a quiet machine, and on a busy one they wait
    for each other at every product: 9 s a step instead of 0.2 s beside a load of 20.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.set_num_threads(before[1])


class _Loop:
    """One call of `train_adapters` once its data are there."""

    def __init__(
        self, dataset: Dataset, folder: Path, base: LoraBase, config: LoraConfig, hooks: Hooks, episodes: int
    ) -> None:
        self.folder, self.base, self.config, self.hooks = folder, base, config, hooks
        self.episodes = episodes
        self.parts = Parts(dataset, base, config)
        self.state = self.parts.state
        self.resumed = restore_state(folder, self.state, self.parts.identity)
        self.begun_at = self.state.step
        self.saved: int | None = self.begun_at if self.resumed else None
        self.metrics: dict[str, float] = {}
        self.held_out: dict[str, float] = {}
        self.stopped = False
        self.paused_s = 0.0
        self.worked_before_s = self.state.worked_s
        self._reported_s = time.monotonic()

    def go(self) -> LoraResult:
        """Run the remaining steps; returns with the state saved, and with the adapters where the run is over."""
        begun_s = time.monotonic()
        if self._ended_by() is None:
            self._steps()
        ended_by = self._ended_by()
        sha256 = None
        self._save()
        if ended_by is not None:
            self.state.take_best()
            sha256 = save_adapters(
                self.folder, self.parts.model, self.parts.spec, base_sha256=self.base.sha256, extra=self._extra()
            )
        parameters = sum(parameter.numel() for parameter in self.state.parameters)
        return LoraResult(
            adapters_dir=self.folder,
            step=self.state.step,
            completed=ended_by is not None,
            final_loss=self.metrics.get("loss"),
            steps_per_s=self._steps_per_s(),
            duration_s=time.monotonic() - begun_s,
            resumed_from=self.begun_at if self.resumed else None,
            ended_by=ended_by or "request",
            best_step=self.state.standing.best_step,
            best_loss=self.state.standing.best_loss,
            paused_s=self.paused_s,
            episodes=self.episodes,
            parameters=parameters,
            share=parameters / self.parts.base_size,
            sha256=sha256,
        )

    def _extra(self) -> dict[str, Any]:
        """Return what the adapters' document says of the run, enough to merge them later."""
        standing, identity = self.state.standing, self.parts.identity
        return {
            "base": {"name": self.base.name, "source": self.base.source},
            "steps": self.state.step,
            "config": self.config.to_dict(),
            "dataset": identity["dataset"],
            "control_period_s": identity["control_period_s"],
            "held_out": standing.to_json(),
        }

    def _ended_by(self) -> str | None:
        if 0 < self.config.patience <= self.state.standing.stale:
            return "held-out loss"
        if self.state.step >= self.config.max_steps:
            return "steps"
        return "time" if self.state.worked_s >= self.config.max_wall_time_s else None

    def _steps(self) -> None:
        with ExitStack() as stack:
            curves = stack.enter_context(MetricsLog(self.folder, self.state.step))
            batches = stack.enter_context(closing(self.parts.feed.batches(self.state.step)))
            if self.state.step == 0 and self.state.standing.best_step is None:
                self._look()
            while self._ended_by() is None and not self.hooks.should_stop():
                if self._rest():
                    continue
                begun_s = time.monotonic()
                self._learn(self.parts.disturbed(next(batches), self.state.step))
                self._between(curves)
                self.state.worked_s += time.monotonic() - begun_s

    def _learn(self, sequences: Sequences) -> None:
        """Make one optimiser step."""
        state, config = self.state, self.config
        batch = to_tensors(sequences)
        rate = self.parts.learning_rate(state.step)
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        carry = self.parts.model.opening_carry(config.batch_size)
        _, outputs = self.parts.model.unroll(carry, batch.inputs)
        found = losses(outputs, batch)
        state.optimiser.zero_grad(set_to_none=True)
        found["loss"].backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(state.parameters, config.clip_norm)
        self.metrics = {name: float(value.detach()) for name, value in found.items()}
        self.metrics |= {"gradient_norm": float(norm), "learning_rate": rate}
        self._require_finite()
        state.optimiser.step()
        state.step += 1

    def _require_finite(self) -> None:
        # Before the optimiser's step: what diverges must not reach the state that is saved.
        for name in ("loss", "gradient_norm"):
            if not np.isfinite(self.metrics[name]):
                raise CorruptDataError(
                    f"the {name.replace('_', ' ')} is {self.metrics[name]} at step {self.state.step + 1}; lower "
                    "learning_rate (the last saved state is kept)"
                )

    def _between(self, curves: MetricsLog) -> None:
        """Do what is due after a step: look at the held-out loss, log, report, save."""
        config, step = self.config, self.state.step
        last = step == config.max_steps
        looked = self.parts.held_out is not None and (step % config.evaluate_every == 0 or last)
        if looked:
            self._look()
        if step % config.log_every == 0 or last or looked:
            extra = {"held_out_loss": self.held_out["held_out_loss"]} if looked else {}
            curves.write(step, self.metrics | extra | {"steps_per_s": self._steps_per_s()})
        if time.monotonic() - self._reported_s >= REPORT_EVERY_S or last:
            self._reported_s = time.monotonic()
            metrics = self.metrics | self.held_out
            self.hooks.on_progress(
                TrainProgress(step, config.max_steps, self.metrics["loss"], self._steps_per_s(), metrics)
            )
        if step % config.checkpoint_every == 0:
            self._save()

    def _look(self) -> None:
        """Look at the held-out loss of what would be served now; the base's own comes first, at step 0."""
        if self.parts.held_out is None:
            return
        state = self.state
        loss = self.parts.held_out(self.parts.merged())
        state.standing = state.standing.after(state.step, loss)
        if state.standing.best_step == state.step:
            state.keep_best()
        self.held_out = {"held_out_loss": loss, "held_out_step": float(state.step)}

    def _steps_per_s(self) -> float:
        worked_s = self.state.worked_s - self.worked_before_s
        return (self.state.step - self.begun_at) / worked_s if worked_s > 0 else 0.0

    def _save(self) -> None:
        if self.saved != self.state.step:
            save_state(self.folder, self.state, self.parts.identity)
            self.saved = self.state.step

    def _rest(self) -> bool:
        """Wait while a gate is shut; true if it was. What was learned is saved first: power may go."""
        reason = told = self.hooks.pause_reason()
        if not reason:
            return False
        begun_s = time.monotonic()
        log.warning("fine-tuning pauses", extra={"step": self.state.step, "reason": reason})
        self._save()
        self.hooks.on_pause(reason)
        while reason and not self.hooks.should_stop():
            time.sleep(PAUSE_POLL_S)
            reason = self.hooks.pause_reason()
            if reason and reason != told:
                self.hooks.on_pause(reason)
                told = reason
        self.hooks.on_pause("")
        self.paused_s += time.monotonic() - begun_s
        return True
