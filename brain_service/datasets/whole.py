"""Whole episodes, padded to a few lengths: a program is compiled for each T, so there must not be many."""

from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from brain_service.datasets.rows import Piece
from brain_service.datasets.shuffle import permutation
from brain_service.errors import InvalidError

__all__ = ["EpisodePlan", "bucket_lengths"]

_SHORTEST = 8


def bucket_lengths(longest: int) -> tuple[int, ...]:
    """Return the lengths T that episodes are padded to: the longest one and its halves (rounded up) down to 8."""
    found = [longest]
    while found[-1] > _SHORTEST:
        found.append(-(-found[-1] // 2))
    return tuple(reversed(found))


class EpisodePlan:
    """Batches of B whole episodes of one bucket, each padded to the bucket's T; in a new order each epoch.

    The last batch of a bucket may have empty rows, so that an epoch holds every episode exactly once.

    Raises:
        InvalidError: an episode is longer than the longest bucket; names its number and length.
    """

    def __init__(self, lengths: Int64[np.ndarray, " n"], batch_size: int, longest: int | None, seed: int) -> None:
        self.buckets = bucket_lengths(int(lengths.max()) if longest is None else longest)
        if (lengths > self.buckets[-1]).any():
            episode = int(np.argmax(lengths > self.buckets[-1]))
            raise InvalidError(
                f"episode {episode} has {lengths[episode]} steps, more than sequence_length {self.buckets[-1]}; "
                f"whole episodes need at least {lengths.max()}",
                field="sequence_length",
            )
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._bucket = np.searchsorted(self.buckets, lengths)
        counts = np.bincount(self._bucket, minlength=len(self.buckets))
        self._batches = -(-counts // batch_size)
        self._order = lru_cache(maxsize=2)(self._epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Batches until every episode has been seen once."""
        return int(self._batches.sum())

    @property
    def places_per_epoch(self) -> int:
        """Steps that an epoch has room for, padding included."""
        return int((self._batches * self.buckets).sum()) * self._batch_size

    def _epoch(self, epoch: int) -> list[tuple[int, list[int]]]:
        """Return bucket and episodes of each batch of an epoch."""
        order = permutation(len(self._lengths), self._seed, epoch)
        batches = []
        for bucket in range(len(self.buckets)):
            its = order[self._bucket[order] == bucket].tolist()
            batches += [
                (bucket, its[start : start + self._batch_size]) for start in range(0, len(its), self._batch_size)
            ]
        return [batches[place] for place in permutation(len(batches), self._seed, epoch).tolist()]

    def pieces(self, step: int) -> tuple[list[Piece], int]:
        """Return the episodes of batch `step`, one a row, and the T of its shape `[B, T]`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        bucket, episodes = self._order(epoch)[place]
        pieces = [Piece(row, 0, episode, 0, int(self._lengths[episode])) for row, episode in enumerate(episodes)]
        return pieces, self.buckets[bucket]
