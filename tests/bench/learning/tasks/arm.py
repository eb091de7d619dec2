"""Meta-World's reach, push and drawer-open (Yu et al., arXiv 1910.10897) with its own scripted experts.

The `-hidden` variants blank the goal from the tenth step on: what is not remembered by then is lost. No model sees
its last action, nor the frame before that Meta-World repeats in each observation: an arm slows down near the goal,
so its last motion tells where that is. The way to reach is a straight line from where the arm always begins, so
that no memory is needed on it: once the goal is hidden (and in the plain variant too) the arm is pushed off it.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import gymnasium
import metaworld  # noqa: F401  (registers the environments)
import numpy as np
from jaxtyping import Float32
from metaworld.policies import ENV_POLICY_MAP

from tests.bench.learning.tasks.task import Demonstrations, Outcome, Task, pack

__all__ = ["ARM_TASKS"]

BEFORE = slice(18, 36)  # where in the observation the frame before is
GOAL = slice(36, 39)  # and the goal
GOALS_OF_A_DRAW = 50
JUDGED_FROM = 1_000_003  # added to a seed: another draw of goals
NEXT_DRAW = 1000  # added to a seed for each further draw of goals to demonstrate
MAX_STEPS = 200  # about twice what a disturbed expert needs


@dataclass(frozen=True, kw_only=True)
class Arm(Task):
    """39 observations (the gripper, the objects, the goal), 4 commands."""

    success: bool = True
    sees_past: bool = False
    environment: str
    hidden_from: int | None = None
    noise: float = 0.3
    """Standard deviation of what is added to the expert's command while it demonstrates, in its own units."""

    goals: int = GOALS_OF_A_DRAW
    """How many goals the demonstrations of a seed pick theirs from, with repetition; a multiple of a draw."""
    pushed: tuple[int, int] | None = None
    """First step and the one after the last at which the arm moves in a random direction whatever is commanded."""

    def collect(self, seed: int, count: int) -> Demonstrations:
        """Let the expert succeed `count` times with disturbed actuators."""
        draws = self.goals // GOALS_OF_A_DRAW
        arms = [OneArm(self.environment, seed + NEXT_DRAW * draw, None, self.pushed) for draw in range(draws)]
        rng = np.random.default_rng(seed)
        episodes: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        while len(episodes) < count:
            arm = arms[len(episodes) // GOALS_OF_A_DRAW % draws]
            seen, action, reward = [arm.reset()[0]], [], []
            for _ in range(MAX_STEPS):
                command = arm.expert_action()
                action.append(command[0])
                outcome = arm.step(command + np.float32(self.noise) * rng.standard_normal((1, 4), np.float32))
                reward.append(outcome.reward[0])
                seen.append(outcome.observation[0])
                if outcome.done[0]:
                    episodes.append((np.stack(seen[:-1]), np.stack(action), np.asarray(reward)))
                    break
        return pack(episodes)

    def view(self, demonstrations: Demonstrations) -> Demonstrations:
        """Blank the goal where it is hidden."""
        if self.hidden_from is None:
            return demonstrations
        observation = demonstrations.observation.copy()
        observation[:, self.hidden_from :, GOAL] = 0.0
        return demonstrations._replace(observation=observation)

    def judge(self, seed: int) -> "OneArm":
        """Return an arm with goals that no demonstration had."""
        return OneArm(self.environment, JUDGED_FROM + seed, self.hidden_from, self.pushed)

    def random_action(self, rng: np.random.Generator, batch: int) -> Float32[np.ndarray, "B 4"]:
        """Return a random command."""
        return rng.uniform(-1, 1, (batch, 4)).astype(np.float32)


class OneArm:
    """One arm: the simulator takes far longer than a model's step, so a batch would gain nothing."""

    batch = 1
    max_steps = MAX_STEPS

    def __init__(
        self, environment: str, goals_seed: int, hidden_from: int | None, pushed: tuple[int, int] | None
    ) -> None:
        warnings.filterwarnings("ignore", module="gymnasium")
        warnings.filterwarnings("ignore", module="metaworld")
        self._env: Any = gymnasium.make("Meta-World/MT1", env_name=environment, seed=goals_seed)
        self._expert = ENV_POLICY_MAP[environment]()
        self._hidden_from = hidden_from
        self._pushed = range(*pushed) if pushed else range(0)
        self._pushes = np.random.default_rng(goals_seed)

    def reset(self) -> Float32[np.ndarray, "1 39"]:
        """Go to the next goal."""
        self._raw, _ = self._env.reset()
        self._steps, self._success = 0, False
        direction = self._pushes.standard_normal(3)
        self._push = direction / np.linalg.norm(direction)
        return self._seen()

    def step(self, action: Float32[np.ndarray, "1 4"]) -> Outcome:
        """Apply a command, cut to [-1, 1]; a success ends the episode."""
        command = np.clip(action[0], -1.0, 1.0)
        if self._steps in self._pushed:
            command = np.append(self._push, command[3]).astype(np.float32)
        self._raw, reward, _, _, info = self._env.step(command)
        self._steps += 1
        self._success |= bool(info["success"])
        return Outcome(self._seen(), np.asarray([reward], np.float32), np.asarray([self._success]))

    def scores(self) -> Float32[np.ndarray, "1"]:
        """Return 1 for a success."""
        return np.asarray([self._success], np.float32)

    def expert_action(self) -> Float32[np.ndarray, "1 4"]:
        """Return the scripted expert's command; it sees the goal always."""
        command = np.asarray(self._expert.get_action(self._raw), np.float32)
        return np.clip(command, -1.0, 1.0)[None]

    def _seen(self) -> Float32[np.ndarray, "1 39"]:
        seen = np.asarray(self._raw, np.float32)[None].copy()
        seen[:, BEFORE] = 0.0
        if self._hidden_from is not None and self._steps >= self._hidden_from:
            seen[:, GOAL] = 0.0
        return seen


def _tasks() -> tuple[Arm, ...]:
    # Less noise than by default: the goal moves by 0.1 of the spread that its blanking gives it.
    train = {"steps": 400, "batch_size": 16, "observation_noise": 0.05}
    return tuple(
        Arm(
            name=f"{name}{suffix}",
            environment=f"{name}-v3",
            hidden_from=hidden_from,
            pushed=(10, 20) if name == "reach" else None,
            demonstrations=demonstrations,
            goals=demonstrations if name == "reach" else GOALS_OF_A_DRAW,
            episodes=50,
            lengths=((128, 1.0),),
            train=train,
        )
        for name, demonstrations in (("reach", 600), ("push", 300), ("drawer-open", 100))
        for suffix, hidden_from in (("", None), ("-hidden", 10))
    )


ARM_TASKS = _tasks()
