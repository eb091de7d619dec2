"""Fixed-size training batches of sequences: a pure function of (manifest, seed, step).

Episodes are cut into windows of T steps; the last window of an episode is padded with zeros and masked. The
windows are shuffled anew each epoch. Nothing but the step number is state, so a trainer that resumes at step n
gets the batches that it would have got.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import numpy as np
from jaxtyping import Float32, Int64

from brain_service.datasets.dataset import Dataset, EpisodeVectors, open_dataset
from brain_service.datasets.shuffle import permutation
from brain_service.errors import InvalidError

__all__ = ["Batch", "Dataset", "EpisodeVectors", "SequenceLoader", "open_dataset"]

IMITATED_ROLES = ("expert", "intervention")


@dataclass(frozen=True)
class Batch:
    """B sequences of T steps, float32, raw units; zeros beyond the end of a sequence.

    `previous_action` and `previous_reward` are those of step t-1, also where a window starts in the middle of an
    episode; they are zero where `is_first` is 1.

    The masks are 1 or 0: `mask` for real steps; `valid_mask` where action and reward mean something as well;
    `loss_mask` where the action is one to imitate: valid, and its control role among the loader's roles;
    `next_mask` where step t+1 is in the same sequence, so that its observation is a target.
    """

    observation: Float32[np.ndarray, "B T D"]
    action: Float32[np.ndarray, "B T A"]
    previous_action: Float32[np.ndarray, "B T A"]
    previous_reward: Float32[np.ndarray, "B T"]
    reward: Float32[np.ndarray, "B T"]
    is_first: Float32[np.ndarray, "B T"]
    is_terminal: Float32[np.ndarray, "B T"]
    mask: Float32[np.ndarray, "B T"]
    valid_mask: Float32[np.ndarray, "B T"]
    loss_mask: Float32[np.ndarray, "B T"]
    next_mask: Float32[np.ndarray, "B T"]


class SequenceLoader:
    """Batches of `batch_size` windows of `sequence_length` steps from one split of a dataset.

    `roles` are the control roles whose actions are imitated; steps of other roles are there, with `loss_mask` 0.

    Raises:
        InvalidError: a size is not positive.
        NotFoundError: the dataset has no such split.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        batch_size: int,
        sequence_length: int,
        seed: int,
        roles: Sequence[str] = IMITATED_ROLES,
    ) -> None:
        for field, value in (("batch_size", batch_size), ("sequence_length", sequence_length)):
            if value <= 0:
                raise InvalidError(f"{field} {value} is not positive", field=field)
        self.dataset = dataset
        self.split = split
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.seed = seed
        self.roles = frozenset(roles)
        self._windows = plan_windows(dataset.lengths(split), sequence_length)

    @property
    def window_count(self) -> int:
        """Windows an epoch: sequences of at most T steps."""
        return len(self._windows)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of B windows until every window has been seen once, rounded up."""
        return -(-self.window_count // self.batch_size)

    def windows(self, step: int) -> list[tuple[int, int]]:
        """Return B pairs (episode, first step), one for each row of batch `step`.

        Epochs follow each other without a gap: a batch may hold the end of one and the start of the next.
        """
        found: list[tuple[int, int]] = []
        position = step * self.batch_size
        while len(found) < self.batch_size:
            epoch, start = divmod(position, self.window_count)
            order = permutation(self.window_count, self.seed, epoch)
            rows = self._windows[order[start : start + self.batch_size - len(found)]]
            found += [(int(episode), int(first)) for episode, first in rows]
            position += len(rows)
        return found

    def batch(self, step: int) -> Batch:
        """Return batch `step` (counted from 0, without end).

        Raises:
            InvalidError: `step` is negative.
            CorruptDataError: a record fails its checksum; names shard and byte.
        """
        if step < 0:
            raise InvalidError(f"batch step {step} is negative; steps count from 0", field="step")
        rows = [
            _row(self.dataset.vectors(self.split, episode), first, self.sequence_length, self.roles)
            for episode, first in self.windows(step)
        ]
        return Batch(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})

    def batches(self, start: int = 0, prefetch: int = 2) -> Iterator[Batch]:
        """Yield batches from step `start` on, without end; a thread makes `prefetch` of them ahead of time.

        Close the iterator (or let it go) to end the thread.

        Raises:
            InvalidError: `start` is negative.
            CorruptDataError: a record fails its checksum; names shard and byte.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="loader-prefetch") as pool:
            ahead = deque(pool.submit(self.batch, start + n) for n in range(prefetch))
            try:
                for step in count(start + prefetch):
                    ahead.append(pool.submit(self.batch, step))
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()


def plan_windows(lengths: Int64[np.ndarray, " n"], sequence_length: int) -> Int64[np.ndarray, "windows 2"]:
    """Return (episode, first step) of every window, shape `[windows, 2]`: each step lies in exactly one."""
    counts = -(-lengths // sequence_length)
    episodes = np.repeat(np.arange(len(lengths)), counts)
    firsts = np.concatenate([np.arange(n) for n in counts]) * sequence_length
    return np.stack([episodes, firsts], axis=1).astype(np.int64)


def _row(
    episode: EpisodeVectors, first: int, length: int, roles: frozenset[str]
) -> dict[str, Float32[np.ndarray, "T ..."]]:
    """Cut one window of `length` steps, padded with zeros."""
    stop = min(first + length, len(episode))
    here = slice(first, stop)
    # A window that starts inside an episode knows what was done and earned just before it.
    before = slice(max(first - 1, 0), stop - 1)
    shift = 1 if first == 0 else 0
    imitated = np.array([role in roles for role in episode.control_role[here]])
    follows = np.arange(first, stop) < stop - 1
    ones = np.ones(stop - first, np.float32)
    return {
        "observation": _pad(episode.observation[here], length),
        "action": _pad(episode.action[here], length),
        "previous_action": _pad(episode.action[before], length, shift),
        "previous_reward": _pad(episode.reward[before], length, shift),
        "reward": _pad(episode.reward[here], length),
        "is_first": _pad(episode.is_first[here], length),
        "is_terminal": _pad(episode.is_terminal[here], length),
        "mask": _pad(ones, length),
        "valid_mask": _pad(episode.valid[here], length),
        "loss_mask": _pad(episode.valid[here] & imitated, length),
        "next_mask": _pad(follows, length),
    }


def _pad(
    rows: np.ndarray[tuple[int, ...], np.dtype[np.generic]], length: int, shift: int = 0
) -> Float32[np.ndarray, "T ..."]:
    padded = np.zeros((length, *rows.shape[1:]), np.float32)
    padded[shift : shift + len(rows)] = rows
    return padded
