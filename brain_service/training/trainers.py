"""Who trains: a table of trainers that take the same assignment and leave the same kind of checkpoint.

Each imports its framework when its turn comes.
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from brain_service.errors import InvalidError
from brain_service.hardware.gate import Gate
from brain_service.settings import LoraSettings, Settings
from brain_service.training.config import TrainConfig
from brain_service.training.loop import Hooks, TrainResult, train

if TYPE_CHECKING:
    from brain_service.training.torch_lora.base import LoraBase
    from brain_service.training.torch_lora.config import LoraConfig
    from brain_service.training.torch_lora.trainer import LoraResult

__all__ = ["TRAINERS", "Assignment", "JaxTrainer", "PytorchTrainer", "Trained", "Trainer"]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One training: its data, its name, and what the request says of it.

    `choices` are settings by the names that a request has; what it leaves out is the trainer's to choose.
    `find_base` returns the model of a name (None: the usual one), for a trainer that goes on from a model. `who`
    asked, for the audit.
    """

    dataset: Path
    run_id: str
    settings: Settings
    choices: Mapping[str, Any]
    hooks: Hooks
    find_base: "Callable[[str | None], LoraBase]"
    who: str


@dataclass(frozen=True)
class Trained:
    """How it ended: a sentence, and JSON-ready figures; `completed` is false where it was asked to stop.

    The checkpoint lies in the assignment's `settings.checkpoints_dir / run_id`.
    """

    summary: str
    result: Mapping[str, Any]
    completed: bool = True


class Trainer(Protocol):
    """What takes an assignment; its own gates (heat, power and so on) hold it beside those of the hooks."""

    name: str

    def command(self, settings: Settings, dataset: Path, run_id: str, choices: Mapping[str, Any]) -> str:
        """Return the command line that trains the same."""
        ...

    def train(self, work: Assignment) -> Trained:
        """Train, going on from where the run stands, and leave a checkpoint that evaluation and export take.

        Raises:
            BrainError: nothing can be trained, or it failed; names the next step.
        """
        ...


def _gated(hooks: Hooks, gate: Callable[[], str]) -> Hooks:
    """Return the hooks with one more reason to pause."""
    asked = hooks.pause_reason
    return replace(hooks, pause_reason=lambda: "; ".join(reason for ask in (asked, gate) if (reason := ask())))


def _options(choices: Mapping[str, Any]) -> list[str]:
    return [part for name, value in choices.items() for part in (f"--{name.replace('_', '-')}", str(value))]


class JaxTrainer:
    """Trains every parameter of a new model."""

    name = "jax"

    def command(self, settings: Settings, dataset: Path, run_id: str, choices: Mapping[str, Any]) -> str:
        """Return the command line that trains the same."""
        words = ["brain", "train", "--data-path", str(dataset), "--checkpoint-dir"]
        return shlex.join([*words, str(settings.checkpoints_dir / run_id), *_options(choices)])

    def train(self, work: Assignment) -> Trained:
        """Train, going on from the run's newest checkpoint that verifies.

        Raises:
            InvalidError: a setting does not fit the data.
            CorruptDataError: a shard is damaged, or the loss is not finite.
            UnavailableError: a checkpoint or the metrics cannot be written.
        """
        gate = Gate(work.settings.gates)
        folder = work.settings.checkpoints_dir / work.run_id
        config = TrainConfig.from_dict(work.choices)
        done = train(work.dataset, folder, config, hooks=_gated(work.hooks, gate.reason))
        result = {name: value for name, value in done.to_json().items() if name != "checkpoint_dir"}
        result = {"checkpoint": work.run_id, "steps": result.pop("step")} | result
        return Trained(self._summary(done), result, done.completed)

    @staticmethod
    def _summary(done: TrainResult) -> str:
        loss = "" if done.final_loss is None else f", loss {done.final_loss:.3f}, {done.steps_per_s:.1f} steps/s"
        best = (
            "" if done.best_loss is None else f", best held-out loss {done.best_loss:.3f} at step {done.best_step}"
        )
        early = " (stopped early)" if done.stopped_early else ""
        return f"{done.step} steps{early}{loss}{best}{_interrupted(done.resumed_from, done.paused_s)}"


class PytorchTrainer:
    """Trains low-rank adapters on a model that is there, and merges them into a checkpoint."""

    name = "pytorch"
    NAMES: Mapping[str, str] = MappingProxyType({"steps": "max_steps"})
    OWN = ("preset", "mode", "image", "image_size")
    """Choices that the base or the trainer has made already."""

    def command(self, settings: Settings, dataset: Path, run_id: str, choices: Mapping[str, Any]) -> str:
        """Return the command line that trains the same."""
        words = ["brain", "lora", "train", "--data-dir", str(settings.data_dir), "--rlds-dir", str(dataset)]
        return shlex.join([*words, "--run", run_id, *_options(self._own(choices))])

    def train(self, work: Assignment) -> Trained:
        """Train adapters, going on from where the run stands, and merge them once it is over.

        Raises:
            UnavailableError: there is no torch that works, a sensor is missing, or the medium is full.
            InvalidError: a setting is wrong, the episodes are too few, the base has other features, or the run's
                name is that of another model's run.
            NotFoundError: there is no base.
            ConflictError: another process works on this run.
            CorruptDataError: a file is damaged, or the loss is not finite.
        """
        from brain_service.training.torch_lora.gates import LoraGates
        from brain_service.training.torch_lora.require import require_torch

        config = self.config(work.settings, work.choices)
        require_torch()
        gates = LoraGates(work.settings)
        gates.require_sensors()

        from brain_service.training.torch_lora.merge import merge_adapters, require_place
        from brain_service.training.torch_lora.state import base_source
        from brain_service.training.torch_lora.store import AdapterStore
        from brain_service.training.torch_lora.trainer import train_adapters

        store = AdapterStore(config.adapters_out_dir or work.settings.adapters_dir)
        folder, merged = store.folder / work.run_id, work.settings.checkpoints_dir / work.run_id
        with store.hold(work.run_id):
            base = work.find_base(config.base_model_path or base_source(folder))
            require_place(merged, base)
            done = train_adapters(work.dataset, folder, base, config, _gated(work.hooks, gates.reason))
            if done.completed:
                figures = {"steps": done.step, "held_out_loss": done.best_loss, "base": base.name}
                store.note("trained", work.run_id, done.sha256, work.who, **figures)
                merge_adapters(folder, base, merged)
        result = {name: value for name, value in done.to_json().items() if name not in ("adapters_dir", "step")}
        result = {"checkpoint": work.run_id, "steps": done.step, "base": base.name} | result
        return Trained(self._summary(done, base.name), result, done.completed)

    def config(self, settings: Settings, choices: Mapping[str, Any]) -> "LoraConfig":
        """Return the run's settings: those of `[lora]`, and over them what was chosen.

        Raises:
            InvalidError: a name is unknown, or a value impossible.
        """
        from brain_service.training.torch_lora.config import LoraConfig

        known = {item.name for item in fields(LoraConfig)}
        usual = {name: getattr(settings.lora, name) for name in LoraSettings.model_fields if name in known}
        return LoraConfig.from_dict(usual | self._own(choices))

    def _own(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """Return the choices under the names that this trainer has for them.

        Raises:
            InvalidError: a mode or an image is chosen that adapters are not trained with.
        """
        for name in ("image", "image_size"):
            if (value := choices.get(name, "auto")) not in ("auto", "none"):
                raise InvalidError(
                    f"{name} {value!r}: adapters are not trained on images yet; leave it out, or choose trainer "
                    "'jax'",
                    field=name,
                )
        if (mode := choices.get("mode", "windows")) != "windows":
            raise InvalidError(
                f"mode {mode!r}: adapters are trained on windows only; leave mode out, or choose trainer 'jax'",
                field="mode",
            )
        return {self.NAMES.get(name, name): value for name, value in choices.items() if name not in self.OWN}

    @staticmethod
    def _summary(done: "LoraResult", base: str) -> str:
        loss = "" if done.final_loss is None else f", loss {done.final_loss:.3f}, {done.steps_per_s:.1f} steps/s"
        best = ""
        if done.best_loss is not None:
            where = f"at step {done.best_step}" if done.best_step else "without adapters: they are no better"
            best = f", best held-out loss {done.best_loss:.3f} {where}"
        return (
            f"{done.step} steps on adapters of {base} ({done.share:.1%} of its size), ended by {done.ended_by}"
            f"{loss}{best}{_interrupted(done.resumed_from, done.paused_s)}"
        )


def _interrupted(resumed_from: int | None, paused_s: float) -> str:
    resumed = "" if resumed_from is None else f", resumed at step {resumed_from}"
    return resumed + (f", paused for {paused_s:.0f} s" if paused_s >= 1 else "")


TRAINERS: Mapping[str, Trainer] = MappingProxyType(
    {trainer.name: trainer for trainer in (JaxTrainer(), PytorchTrainer())}
)
"""Trainers by name, as a job names them."""
