"""Closed loop: the model acts, a simulator answers. An action error is never enough alone."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from brain_service.errors import InvalidError
from brain_service.model.core import step
from brain_service.model.signals import StepInputs
from brain_service.model.state import init_carry
from brain_service.training.evaluation.intervals import wilson
from brain_service.training.evaluation.subject import Subject

__all__ = ["ClosedLoop", "Drive", "Policy", "Simulator", "drive_closed_loop"]


class Drive(NamedTuple):
    """How one episode ended."""

    success: bool
    total_reward: float
    steps: int


class Policy(Protocol):
    """From an observation `[D]` and the reward of the step before to an action `[A]`, all in raw units."""

    def __call__(self, observation: Float[np.ndarray, "D"], reward: float = 0.0) -> Float32[np.ndarray, "A"]:
        """Answer the next step of the episode."""


Simulator = Callable[[Policy, int], tuple[bool, float, int]]
"""Runs one episode with the policy (fresh for each) and returns what a `Drive` holds; the integer is its seed."""


@dataclass(frozen=True)
class ClosedLoop:
    """Success with Wilson's 95 % interval, and the mean return, over the simulated episodes."""

    episodes: int
    success_rate: float
    success_interval: tuple[float, float]
    mean_return: float
    mean_steps: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON-ready mapping."""
        return asdict(self)


def drive_closed_loop(subject: Subject, simulate: Simulator, episodes: int) -> ClosedLoop:
    """Drive the simulator for so many episodes, seeds 0, 1, 2 and so on.

    The policy is what the exported model is: means of the first action of the chunk, cut to the recorded limits.

    Raises:
        InvalidError: the model sees images, which a simulator of vectors does not show; or the simulator returns
            something else than success, total reward and steps.
    """
    if subject.image is not None:
        raise InvalidError(
            f"{subject.name} sees the image {subject.image.path!r}, which a simulator of vectors does not show; "
            "drive it through /infer",
            field="image",
        )
    advance = jax.jit(lambda params, carry, inputs: step(params, subject.config, carry, inputs))
    drives = [_as_drive(simulate(_Policy(subject, advance), seed)) for seed in range(episodes)]
    wins = sum(drive.success for drive in drives)
    return ClosedLoop(
        episodes=episodes,
        success_rate=wins / max(1, episodes),
        success_interval=wilson(wins, episodes),
        mean_return=float(np.mean([drive.total_reward for drive in drives])),
        mean_steps=float(np.mean([drive.steps for drive in drives])),
    )


def _as_drive(ended: Any) -> Drive:
    try:
        success, total_reward, steps = ended
        return Drive(bool(success), float(total_reward), int(steps))
    except (TypeError, ValueError) as error:
        raise InvalidError(
            f"the simulator returned {ended!r}; return (success, total_reward, steps)", field="simulator"
        ) from error


class _Policy:
    """One episode's state around the model's step."""

    def __init__(self, subject: Subject, advance: Callable[..., Any]) -> None:
        self._subject, self._advance = subject, advance
        self._carry: Any = init_carry(subject.config, 1)
        self._last: Float32[np.ndarray, "A"] | None = None

    def __call__(self, observation: Float[np.ndarray, "D"], reward: float = 0.0) -> Float32[np.ndarray, "A"]:
        scale = self._subject.normaliser
        first = self._last is None
        last = np.zeros_like(scale.action_low) if self._last is None else self._last
        rows = (
            scale.observation(np.asarray(observation, np.float32)[None]),
            scale.action(last[None]),
            scale.reward(np.full(1, 0.0 if first else reward, np.float32)),
            np.full(1, first, np.float32),
        )
        inputs = StepInputs(*(jnp.asarray(values, jnp.float32) for values in rows))
        self._carry, outputs = self._advance(self._subject.params, self._carry, inputs)
        self._last = np.asarray(scale.raw_action(np.asarray(outputs.action_mean[0, 0])), np.float32)
        return self._last
