"""POPGym's RepeatFirst and RepeatPrevious (Morad et al., arXiv 2303.01859): say a suit that was dealt earlier.

POPGym deals and judges; the expert is a memory of the cards that were seen. A right answer earns and a wrong one
costs the same share, so a return lies in [-1, 1]. Models see neither their last action nor the reward: a past
action would be a note of the answer on paper, and no memory at all would then be needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32
from popgym.envs.repeat_first import RepeatFirstHard, RepeatFirstMedium
from popgym.envs.repeat_previous import RepeatPreviousMedium

from tests.bench.learning.tasks.task import Demonstrations, Outcome, Task, pack

__all__ = ["REPEAT_FIRST", "REPEAT_PREVIOUS"]

SUITS = 4
JUDGED_FROM = 10_000_000  # added to a seed: other shuffles than those of the demonstrations


def _one_hot(suits: Any) -> Float32[np.ndarray, "*B 4"]:
    return np.asarray(np.eye(SUITS, dtype=np.float32)[np.asarray(suits)])


def _column(suits: Any) -> Float32[np.ndarray, "*B 1"]:
    return np.asarray(suits, np.float32)[..., None]


@dataclass(frozen=True, kw_only=True)
class Cards(Task):
    """A game of cards; `delay` is how many steps ago the wanted card was dealt, None for the first card."""

    choices: int = SUITS
    sees_past: bool = False
    training: Callable[[], Any]
    judging: Callable[[], Any]
    delay: int | None = None

    def collect(self, seed: int, count: int) -> Demonstrations:
        """Play `count` games by the expert."""
        game, episodes = self.training(), []
        for index in range(count):
            seen, reward, done = [game.reset(seed=seed * 1_000_000 + index)[0]], [], False
            while not done:
                following, earned, done, _, _ = game.step(self._wanted(seen))
                reward.append(earned)
                seen.append(following)
            seen.pop()
            wanted = [self._wanted(seen[: t + 1]) for t in range(len(seen))]
            episodes.append((_one_hot(seen), _column(wanted), np.asarray(reward, np.float32)))
        demonstrations = pack(episodes)
        if self.delay is None:
            return demonstrations
        imitated = demonstrations.mask * (np.arange(demonstrations.mask.shape[1]) >= self.delay)
        return demonstrations._replace(imitated=imitated.astype(np.float32))

    def _wanted(self, seen: list[int]) -> int:
        if self.delay is None:
            return seen[0]
        return seen[-1 - self.delay] if len(seen) > self.delay else 0

    def judge(self, seed: int) -> "CardTable":
        """Return games that were dealt to nobody yet."""
        return CardTable(self, seed, min(self.episodes, 32))

    def random_action(self, rng: np.random.Generator, batch: int) -> Float32[np.ndarray, "B 1"]:
        """Guess."""
        return _column(rng.integers(0, SUITS, batch))


class CardTable:
    """B games side by side."""

    def __init__(self, task: Cards, seed: int, batch: int) -> None:
        self.batch = batch
        self._task = task
        self._games = [task.judging() for _ in range(batch)]
        self._next_seed = JUDGED_FROM + seed * 1_000_000
        self.max_steps = int(self._games[0].max_episode_length)

    def reset(self) -> Float32[np.ndarray, "B 4"]:
        """Deal anew."""
        self._seen = [[game.reset(seed=self._next_seed + i)[0]] for i, game in enumerate(self._games)]
        self._next_seed += self.batch
        self._scores = np.zeros(self.batch)
        return _one_hot([seen[-1] for seen in self._seen])

    def step(self, action: Float32[np.ndarray, "B 1"]) -> Outcome:
        """Say a suit in each game; all games are of one length."""
        answers = [game.step(round(float(said))) for game, said in zip(self._games, action[:, 0], strict=True)]
        for seen, answer in zip(self._seen, answers, strict=True):
            seen.append(answer[0])
        reward = np.asarray([answer[1] for answer in answers])
        self._scores += reward
        observation = _one_hot([answer[0] for answer in answers])
        return Outcome(observation, reward.astype(np.float32), np.asarray([answer[2] for answer in answers]))

    def scores(self) -> Float32[np.ndarray, "B"]:
        """Return the games' returns."""
        return self._scores.astype(np.float32)

    def expert_action(self) -> Float32[np.ndarray, "B 1"]:
        """Say the wanted suit."""
        return _column([self._task._wanted(seen) for seen in self._seen])


REPEAT_FIRST = Cards(
    name="repeat-first",
    training=RepeatFirstMedium,
    judging=RepeatFirstHard,
    demonstrations=512,
    episodes=64,
    # Short games first: what has to be remembered is the same, and there are more of them in an hour.
    lengths=((128, 0.7), (None, 0.3)),
    floor=2e-4,
    train={"steps": 400, "batch_size": 32, "learning_rate": 4e-3, "observation_noise": 0.0},
)
REPEAT_PREVIOUS = Cards(
    name="repeat-previous",
    training=RepeatPreviousMedium,
    judging=RepeatPreviousMedium,
    # POPGym counts the card on the table as the first of its k = 32.
    delay=31,
    demonstrations=2048,
    episodes=128,
    floor=1e-3,
    train={"steps": 600, "batch_size": 32, "learning_rate": 4e-3, "observation_noise": 0.0},
)
