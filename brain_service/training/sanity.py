"""A minute's look at whether the model trains here: shapes, finite numbers, a falling loss, one step = unroll.

It trains for real, with the train step of every run, on a dataset or on made-up numbers, and keeps nothing.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from brain_service.datasets.loader import open_dataset
from brain_service.errors import BrainError, InvalidError
from brain_service.model.config import CoreModelConfig
from brain_service.model.core import Params, count_parameters, step, unroll
from brain_service.model.signals import StepInputs, StepOutputs
from brain_service.model.state import Carry, init_carry
from brain_service.pixels import AUTO, NONE, choose_image
from brain_service.training.config import TrainConfig
from brain_service.training.feed import Feed
from brain_service.training.normalisation import Normaliser
from brain_service.training.objective import Sequences, losses
from brain_service.training.sharding import make_mesh
from brain_service.training.step import abstract_state, init_state, make_train_step
from brain_service.training.synthetic import synthetic_batch

__all__ = ["SanityCheck", "SanityOptions", "SanityReport", "sanity_check"]

OBS_DIM, ACTION_DIM = 128, 32
PARITY = 1e-5
TRAINING_BUDGET_S = 25.0  # beside the compilations, within a minute on a small machine
MEMORY_SHARE = 0.8
MB = 1e6


@dataclass(frozen=True, kw_only=True)
class SanityOptions:
    """What to check with; the sizes default to the dataset's, or to 128 and 32 for made-up numbers.

    Raises:
        InvalidError: a number is too small to tell anything.
    """

    rlds_dir: Path | None = None
    obs_dim: int | None = None
    action_dim: int | None = None
    preset: str = "development"
    max_steps: int = 30
    batch_size: int = 4
    sequence_length: int = 32
    image: str = NONE
    """Which image of the dataset the model sees; see `TrainConfig.image`."""
    image_size: str = AUTO

    def __post_init__(self) -> None:
        for name, least in (
            *(("obs_dim", 1), ("action_dim", 1), ("max_steps", 2)),
            *(("batch_size", 1), ("sequence_length", 4)),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidError(f"{name} is {value}; use at least {least}", field=name)

    def config(self) -> TrainConfig:
        """Return the settings of the short training."""
        return TrainConfig(
            preset=self.preset,
            steps=self.max_steps,
            batch_size=self.batch_size,
            sequence_length=self.sequence_length,
            warmup_steps=max(1, self.max_steps // 10),
            image=self.image,
            image_size=self.image_size,
        )


@dataclass(frozen=True)
class SanityCheck:
    """One thing that was looked at, and what was found."""

    name: str
    passed: bool
    details: str


@dataclass(frozen=True)
class SanityReport:
    """All checks, and what the training cost. Sizes in MB are 10^6 bytes."""

    checks: tuple[SanityCheck, ...]
    data: str
    parameters: int = 0
    steps: int = 0
    steps_per_s: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None
    state_mb: float = 0.0
    """Parameters and optimiser state."""
    peak_memory_mb: float = 0.0
    """The most that this process ever held."""
    duration_s: float = 0.0

    @property
    def passed(self) -> bool:
        """The verdict."""
        return all(check.passed for check in self.checks)

    def failures(self) -> str:
        """Return what did not pass, with what was found."""
        return "; ".join(f"{check.name}: {check.details}" for check in self.checks if not check.passed)

    def summary(self) -> str:
        """Return the verdict in a sentence."""
        verdict = "passes" if self.passed else f"FAILS ({self.failures()})"
        return f"{verdict}: {self.steps} steps at {self.steps_per_s:.1f} steps/s, {self.peak_memory_mb:.0f} MB"

    def lines(self) -> list[str]:
        """Return the report for people, the verdict last."""
        width = max(len(check.name) for check in self.checks)
        found = [
            f"{'pass' if check.passed else 'FAIL'}  {check.name:{width}}  {check.details}" for check in self.checks
        ]
        return [*found, f"{'PASS' if self.passed else 'FAIL'}  in {self.duration_s:.0f} s on {self.data}"]

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-ready mapping, with `passed`."""
        return {"passed": self.passed, **asdict(self)}


def sanity_check(
    options: SanityOptions,
    *,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    stop: Callable[[], None] = lambda: None,
) -> SanityReport:
    """Run the checks and return their report; data that cannot be used is a failed check, not an error.

    `on_progress` is told the steps done and their number; `stop` is called before each step and may raise.
    """
    begun_s = time.monotonic()
    config = options.config()
    where = f"dataset {options.rlds_dir}" if options.rlds_dir else "made-up numbers (no --rlds-dir)"
    try:
        model, batch_of, found = _data(options, config)
    except BrainError as error:
        return SanityReport((SanityCheck("data", False, error.detail),), where)
    checks = [SanityCheck("data", True, found), _shapes(model, batch_of(0))]
    if not checks[-1].passed:
        return SanityReport(tuple(checks), where)
    return _train(model, config, batch_of, checks, where, begun_s, on_progress, stop)


def _data(options: SanityOptions, config: TrainConfig) -> tuple[CoreModelConfig, Callable[[int], Sequences], str]:
    """Return the model for the data, its batches by step, and what was found.

    Raises:
        BrainError: there is no such dataset, it is unusable, or its sizes are not those asked for.
    """
    if options.rlds_dir is None:
        obs_dim, action_dim = options.obs_dim or OBS_DIM, options.action_dim or ACTION_DIM
        made = jax.jit(synthetic_batch, static_argnums=(1, 2, 3, 4))
        sizes = (options.batch_size, options.sequence_length, obs_dim, action_dim)
        told = f"made up: {obs_dim} observed numbers, {action_dim} of action"
        return config.model_config(obs_dim, action_dim), lambda number: made(number, *sizes), told
    dataset = open_dataset(options.rlds_dir)
    for field, wanted, there in (
        ("obs_dim", options.obs_dim, dataset.observation_size),
        ("action_dim", options.action_dim, dataset.action_size),
    ):
        if wanted not in (None, there):
            flag = f"--{field.replace('_', '-')}"
            raise InvalidError(
                f"{flag} is {wanted}, the dataset has {there}; give {there} or leave it out", field=field
            )
    image = choose_image(dataset.spec.observation, config.image, config.image_size)
    choices = config.model_config(1, 1).action_choices
    normaliser = Normaliser.from_statistics(dataset.statistics, choices)
    feed = Feed(dataset, config, normaliser, make_mesh(devices=_one_device()), image)
    lengths = dataset.lengths("train")
    told = f"{len(lengths)} episodes, {int(lengths.sum())} steps to train on"
    if image is not None:
        told += f", image {image.path} of {image.shape[0]} x {image.shape[1]} pixels"
    return config.model_config(dataset.observation_size, dataset.action_size, image), feed.batch, told


def _one_device() -> list[jax.Device]:
    return jax.devices()[:1]


def _shapes(model: CoreModelConfig, batch: Sequences) -> SanityCheck:
    """Hold what the model would answer against the configuration, without running it."""
    rows, length = batch.mask.shape
    params = abstract_state(model, TrainConfig()).params
    outputs: StepOutputs = jax.eval_shape(
        lambda params: unroll(params, model, init_carry(model, rows), batch.inputs)[1], params
    )
    horizon, actions = model.action_horizon, model.action_dim
    expected = {
        "action_mean": (rows, length, horizon, actions),
        "action_log_std": (rows, length, horizon, actions),
        "next_observation": (rows, length, model.obs_dim),
        "reward": (rows, length),
        "value": (rows, length),
    }
    wrong = [
        f"{name} is {getattr(outputs, name).shape} instead of {shape}"
        for name, shape in expected.items()
        if getattr(outputs, name).shape != shape
    ]
    told = f"[{rows}, {length}, {model.obs_dim}] in, [{rows}, {length}, {horizon}, {actions}] out"
    return SanityCheck("shapes", not wrong, "; ".join(wrong) or told)


def _train(
    model: CoreModelConfig,
    config: TrainConfig,
    batch_of: Callable[[int], Sequences],
    checks: list[SanityCheck],
    where: str,
    begun_s: float,
    on_progress: Callable[[int, int], None],
    stop: Callable[[], None],
) -> SanityReport:
    state = init_state(model, config)
    parameters = count_parameters(state.params)
    state_mb = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / MB
    fixed = _with_reset(batch_of(0))
    probe = jax.jit(partial(_probe, model))
    before, _ = probe(state.params, fixed)
    train_step = make_train_step(model, config)
    losses_seen, norms, stepping_s = [], [], 0.0
    for number in range(config.steps):
        stop()
        batch = batch_of(number)
        asked_s = time.monotonic()
        state, metrics = train_step(state, batch)
        losses_seen.append(float(metrics["loss"]))
        norms.append(float(metrics["gradient_norm"]))
        stepping_s += time.monotonic() - asked_s if number else 0.0  # the first one compiles
        on_progress(number + 1, config.steps)
        if stepping_s > TRAINING_BUDGET_S:
            break
    after, outputs = probe(state.params, fixed)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
    checks += [
        _finite("loss", losses_seen),
        _finite("gradients", norms),
        _falls(float(before), float(after), len(losses_seen)),
        _parity(model, state.params, fixed, outputs),
        _memory(peak_mb),
    ]
    return SanityReport(
        tuple(checks),
        where,
        parameters=parameters,
        steps=len(losses_seen),
        steps_per_s=(len(losses_seen) - 1) / max(stepping_s, 1e-9),
        first_loss=float(before),
        last_loss=float(after),
        state_mb=state_mb,
        peak_memory_mb=peak_mb,
        duration_s=time.monotonic() - begun_s,
    )


def _with_reset(batch: Sequences) -> Sequences:
    """Return the batch with an episode's start in the middle of every row."""
    middle = batch.mask.shape[1] // 2
    is_first = batch.inputs.is_first.at[:, middle].set(1.0)
    return batch._replace(inputs=batch.inputs._replace(is_first=is_first))


def _probe(model: CoreModelConfig, params: Params, batch: Sequences) -> tuple[Any, StepOutputs]:
    _, outputs = unroll(params, model, init_carry(model, batch.mask.shape[0]), batch.inputs)
    return losses(outputs, batch)["loss"], outputs


def _finite(name: str, values: list[float]) -> SanityCheck:
    bad = [number for number, value in enumerate(values, 1) if not np.isfinite(value)]
    told = (
        f"not finite at step {bad[0]}" if bad else f"finite over {len(values)} steps, {values[-1]:.3g} at the last"
    )
    return SanityCheck(name, not bad, told)


def _falls(before: float, after: float, steps: int) -> SanityCheck:
    # On one batch, undisturbed, before and after: the losses of the steps themselves are of different batches.
    told = f"{before:.4f} before, {after:.4f} after {steps} steps on the same batch"
    return SanityCheck("loss falls", bool(after < before), told)


def _parity(model: CoreModelConfig, params: Params, batch: Sequences, outputs: StepOutputs) -> SanityCheck:
    """Step through the sequence as in serving and compare with what the trainer saw at once."""

    @jax.jit
    def one(carry: Carry, t: Any, params: Params, inputs: StepInputs, outputs: StepOutputs) -> tuple[Carry, Any]:
        carry, single = step(params, model, carry, jax.tree.map(lambda array: array[:, t], inputs))
        expected = jax.tree.map(lambda array: array[:, t], outputs)
        scaled = (
            jnp.abs(a - b).max() / jnp.maximum(1.0, jnp.abs(b).max())
            for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(expected), strict=True)
        )
        return carry, jnp.stack(list(scaled)).max()

    carry = init_carry(model, batch.mask.shape[0])
    differences = []
    for t in range(batch.mask.shape[1]):
        carry, difference = one(carry, t, params, batch.inputs, outputs)
        differences.append(float(difference))
    worst = float(np.max(differences))  # NaN where one is
    return SanityCheck(
        "step = unroll", worst <= PARITY, f"greatest difference {worst:.1e}, the bound is {PARITY:.0e}"
    )


def _memory(peak_mb: float) -> SanityCheck:
    total_mb = psutil.virtual_memory().total / MB
    told = f"{peak_mb:.0f} MB at the peak, the machine has {total_mb:.0f} MB"
    return SanityCheck("memory", peak_mb <= MEMORY_SHARE * total_mb, told)
