"""What a task gives: demonstrations to learn from and a judge to be driven against."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float32

__all__ = ["Demonstrations", "Judge", "Outcome", "Task", "pack"]


class Demonstrations(NamedTuple):
    """Whole expert episodes in raw units, padded to the longest; step i is (o_i, a_i, r_i)."""

    observation: Float32[np.ndarray, "N T D"]
    action: Float32[np.ndarray, "N T A"]
    """What the expert commanded in o_i, whatever the actuators made of it."""
    reward: Float32[np.ndarray, "N T"]
    mask: Float32[np.ndarray, "N T"]
    """1 on real steps, 0 on padding."""
    imitated: Float32[np.ndarray, "N T"]
    """1 where the action is to be imitated."""


class Outcome(NamedTuple):
    """What followed one action of each of B environments."""

    observation: Float32[np.ndarray, "B D"]
    reward: Float32[np.ndarray, "B"]
    done: Bool[np.ndarray, "B"]


class Judge(Protocol):
    """B environments that run side by side; what a done one answers no longer counts."""

    batch: int
    max_steps: int

    def reset(self) -> Float32[np.ndarray, "B D"]:
        """Begin B new episodes; return their first observations."""

    def step(self, action: Float32[np.ndarray, "B A"]) -> Outcome:
        """Apply raw actions."""

    def scores(self) -> Float32[np.ndarray, "B"]:
        """Return the score of each episode so far."""

    def expert_action(self) -> Float32[np.ndarray, "B A"]:
        """Return what the task's expert would do now; it sees the whole state."""


# What is done with demonstrations once they are there.
_LATER = ("name", "choices", "success", "sees_past", "episodes", "judging", "hidden_from", "lengths", "floor")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task: its name, how it is scored and how it is trained on."""

    name: str
    choices: int = 0
    """The action is one of so many numbers, 0, 1, ...; 0: it is continuous."""
    success: bool = False
    """A score is 0 or 1; otherwise it is a return."""
    sees_past: bool = True
    """The models are given a_{t-1} and r_{t-1}. Off where the past action would be a note of the answer."""
    demonstrations: int = 100
    """Expert episodes of a seed."""
    episodes: int = 50
    """Judged episodes of a seed."""
    lengths: tuple[tuple[int | None, float], ...] = ((None, 1.0),)
    """Curriculum: so many first steps of each demonstration (None: all), up to such a share of the training."""
    floor: float = 0.0
    """Action loss on held-out demonstrations at which a part of the curriculum is learned, and the last part ends
    the training; 0 never ends it early."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the training settings."""

    def settings(self) -> dict[str, Any]:
        """Return every field but those of the training, JSON-ready; a class of games by its name."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "train"}
        return {name: getattr(value, "__name__", value) for name, value in values.items()}

    def recipe(self) -> dict[str, Any]:
        """Return the settings that decide the demonstrations."""
        return {name: value for name, value in self.settings().items() if name not in _LATER}

    def collect(self, seed: int, count: int) -> Demonstrations:
        """Return `count` expert episodes; the seed decides them."""
        raise NotImplementedError

    def judge(self, seed: int) -> Judge:
        """Return environments that share no episode with the demonstrations."""
        raise NotImplementedError

    def view(self, demonstrations: Demonstrations) -> Demonstrations:
        """Return the demonstrations as a model may see them."""
        return demonstrations

    def random_action(self, rng: np.random.Generator, batch: int) -> Float32[np.ndarray, "B A"]:
        """Return actions of a policy that does nothing sensible: the zero of a normalised return."""
        raise NotImplementedError


def pack(episodes: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Demonstrations:
    """Pad episodes of (observation `[T, D]`, action `[T, A]`, reward `[T]`) to one length; all are imitated."""
    longest = max(len(reward) for _, _, reward in episodes)

    def padded(values: np.ndarray) -> np.ndarray:
        out = np.zeros((longest, *values.shape[1:]), np.float32)
        out[: len(values)] = values
        return out

    observation, action, reward = (np.stack([padded(episode[i]) for episode in episodes]) for i in range(3))
    mask = np.stack([padded(np.ones(len(episode[2]))) for episode in episodes])
    return Demonstrations(observation, action, reward, mask, mask)
