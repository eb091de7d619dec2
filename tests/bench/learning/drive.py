"""Closed loop: a trained model against the judge, and the expert and a random policy on the same episodes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from brain_service.model.signals import StepInputs
from tests.bench.learning.fit import Fitted
from tests.bench.learning.models import Policy
from tests.bench.learning.tasks import Judge, Outcome, Task

__all__ = ["drive", "drive_expert", "drive_random"]

Act = Callable[[Float32[np.ndarray, "B D"], Outcome | None], Float32[np.ndarray, "B A"]]
"""From an observation and what the last action led to (None at the first step) to the next action."""


def drive(task: Task, policy: Policy, fitted: Fitted, seed: int) -> list[float]:
    """Return the score of each of `task.episodes` episodes."""
    normaliser = fitted.normaliser
    step = jax.jit(policy.step)
    judge = task.judge(seed)

    def begin() -> Act:
        carry = policy.init_carry(judge.batch)
        past = np.zeros((judge.batch, len(normaliser.action_low)), np.float32)

        def act(observation: Float32[np.ndarray, "B D"], last: Outcome | None) -> Float32[np.ndarray, "B A"]:
            nonlocal carry, past
            shown = task.sees_past and last is not None
            reward = normaliser.reward(last.reward) if shown and last is not None else np.zeros(judge.batch)
            inputs = StepInputs(
                jnp.asarray(normaliser.observation(observation), jnp.float32),
                jnp.asarray(normaliser.action(past) if shown else np.zeros_like(past), jnp.float32),
                jnp.asarray(reward, jnp.float32),
                jnp.full((judge.batch,), float(last is None), jnp.float32),
            )
            carry, outputs = step(fitted.params, carry, inputs)
            past = np.asarray(normaliser.raw_action(np.asarray(outputs.action_mean[:, 0])), np.float32)
            return past

        return act

    return _episodes(task, judge, begin)


def drive_expert(task: Task, seed: int) -> list[float]:
    """Return the expert's scores on the same episodes."""
    judge = task.judge(seed)
    return _episodes(task, judge, lambda: lambda *_: judge.expert_action())


def drive_random(task: Task, seed: int) -> list[float]:
    """Return a random policy's scores on the same episodes."""
    judge, rng = task.judge(seed), np.random.default_rng(seed)
    return _episodes(task, judge, lambda: lambda *_: task.random_action(rng, judge.batch))


def _episodes(task: Task, judge: Judge, begin: Callable[[], Act]) -> list[float]:
    scores: list[float] = []
    while len(scores) < task.episodes:
        act, observation, last = begin(), judge.reset(), None
        for _ in range(judge.max_steps):
            last = judge.step(act(observation, last))
            observation = last.observation
            if last.done.all():
                break
        scores.extend(float(score) for score in judge.scores())
    return scores[: task.episodes]
