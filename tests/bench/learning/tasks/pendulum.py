"""Swing a pendulum up and hold it there, seeing its angle only (POPGym's PositionOnlyPendulumEasy).

The expert sees the velocity too. It pumps the energy of the upright rest into the pendulum and catches it near the
top with a linear feedback (Astrom and Furuta 2000, "Swinging up a pendulum by energy control").
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from popgym.envs.position_only_pendulum import PositionOnlyPendulumEasy

from tests.bench.learning.tasks.task import Demonstrations, Outcome, Task, pack

__all__ = ["PENDULUM", "expert_torque"]

JUDGED_FROM = 10_000_000
MAX_TORQUE = 2.0  # N m
INERTIA = 1.0 / 3.0  # kg m^2: a rod of 1 kg and 1 m
GRAVITY_TORQUE = 5.0  # N m when level: m g l / 2


def expert_torque(cosine: float, sine: float, velocity: float) -> float:
    """Return the expert's torque in N m for an angle from the top and a velocity in rad/s."""
    angle = np.arctan2(sine, cosine)
    catch = -(14.0 * angle + 3.0 * velocity)
    if abs(catch) < 4.0 * MAX_TORQUE and abs(angle) < 0.6:
        return float(np.clip(catch, -MAX_TORQUE, MAX_TORQUE))
    missing = GRAVITY_TORQUE - (0.5 * INERTIA * velocity**2 + GRAVITY_TORQUE * cosine)
    # At rest at the bottom either way is right; the sign must not depend on rounding.
    direction = np.tanh(4.0 * velocity) if abs(velocity) > 1e-3 else 1.0
    return float(np.clip(1.5 * missing * direction, -MAX_TORQUE, MAX_TORQUE))


@dataclass(frozen=True, kw_only=True)
class Pendulum(Task):
    """Two observations (cosine and sine), one torque."""

    push: float = 1.0
    """Standard deviation of what is added to the expert's torque while it demonstrates, in N m."""
    push_kept: float = 0.9
    """Share of a push that is left a step later. White noise undoes itself before it brings the rod anywhere."""

    def collect(self, seed: int, count: int) -> Demonstrations:
        """Let the expert swing up `count` times with a noisy motor."""
        rng = np.random.default_rng(seed)
        rods, episodes = Rods(1, seed * 1_000_000), []
        for _ in range(count):
            seen, action, reward = [rods.reset()[0]], [], []
            push = np.zeros((1, 1), np.float32)
            for _ in range(rods.max_steps):
                command = rods.expert_action()
                action.append(command[0])
                fresh = self.push * np.sqrt(1.0 - self.push_kept**2) * rng.standard_normal((1, 1))
                push = (self.push_kept * push + fresh).astype(np.float32)
                outcome = rods.step(command + push)
                reward.append(outcome.reward[0])
                seen.append(outcome.observation[0])
            episodes.append((np.stack(seen[:-1]), np.stack(action), np.asarray(reward)))
        return pack(episodes)

    def judge(self, seed: int) -> "Rods":
        """Return pendulums at starts that no demonstration had."""
        return Rods(min(self.episodes, 32), JUDGED_FROM + seed * 1_000_000)

    def random_action(self, rng: np.random.Generator, batch: int) -> Float32[np.ndarray, "B 1"]:
        """Return a random torque."""
        return rng.uniform(-MAX_TORQUE, MAX_TORQUE, (batch, 1)).astype(np.float32)


class Rods:
    """B pendulums."""

    def __init__(self, batch: int, first_seed: int) -> None:
        self.batch = batch
        self._rods = [PositionOnlyPendulumEasy() for _ in range(batch)]
        self._next_seed = first_seed
        self.max_steps = int(self._rods[0].max_episode_length)

    def reset(self) -> Float32[np.ndarray, "B 2"]:
        """Release the pendulums at random angles and velocities."""
        seen = [rod.reset(seed=self._next_seed + i)[0] for i, rod in enumerate(self._rods)]
        self._next_seed += self.batch
        self._scores = np.zeros(self.batch)
        return np.asarray(seen, np.float32)

    def step(self, action: Float32[np.ndarray, "B 1"]) -> Outcome:
        """Apply torques in N m."""
        answers = [
            rod.step(np.clip(u, -MAX_TORQUE, MAX_TORQUE)) for rod, u in zip(self._rods, action, strict=True)
        ]
        reward = np.asarray([answer[1] for answer in answers])
        self._scores += reward
        done = np.asarray([answer[2] or answer[3] for answer in answers])
        return Outcome(np.asarray([answer[0] for answer in answers], np.float32), reward.astype(np.float32), done)

    def scores(self) -> Float32[np.ndarray, "B"]:
        """Return POPGym's returns, scaled by it to [-1, 1]."""
        return self._scores.astype(np.float32)

    def expert_action(self) -> Float32[np.ndarray, "B 1"]:
        """Return the expert's torques."""
        return np.asarray([[expert_torque(*rod.get_state())] for rod in self._rods], np.float32)


PENDULUM = Pendulum(
    name="pendulum",
    # Its own last torque is what a model is most tempted to repeat; position and memory are enough.
    sees_past=False,
    demonstrations=400,
    episodes=64,
    train={"steps": 700, "batch_size": 16, "learning_rate": 4e-3, "observation_noise": 0.0},
)
