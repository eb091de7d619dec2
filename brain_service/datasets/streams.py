"""Ordered streams for truncated backpropagation: row b of the next batch goes on where row b of this one ends.

stream 0   |e3 e3 e3 e3|e3 e7 e7 e7|e7 e7 e1 e1|
stream 1   |e0 e0 e2 e2|e2 e2 e2 e2|e2 e9 .. ..|
            batch 0      batch 1     batch 2      (T = 4)
"""

from functools import lru_cache
from heapq import heapify, heapreplace

import numpy as np
from jaxtyping import Int64

from brain_service.datasets.rows import Piece
from brain_service.datasets.shuffle import permutation
from brain_service.errors import InvalidError

__all__ = ["StreamPlan"]

_Stream = tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]
"""The episodes of one stream in an epoch, and the stream's step at which each starts."""


class StreamPlan:
    """B streams of T steps a batch; an epoch shows every step of every episode once.

    An episode belongs to one stream for ever, dealt so that all are about as long; their order within a stream is
    new each epoch. All streams have as many batches an epoch as the longest needs, the others end with padding. So
    the step alone says where every stream stands.

    Raises:
        InvalidError: there are fewer episodes than streams.
    """

    def __init__(self, lengths: Int64[np.ndarray, " n"], batch_size: int, sequence_length: int, seed: int) -> None:
        if len(lengths) < batch_size:
            raise InvalidError(
                f"batch_size {batch_size}: as many streams need as many episodes, and there are {len(lengths)}; "
                "use a smaller batch_size or another mode",
                field="batch_size",
            )
        self._lengths = lengths
        self._sequence_length = sequence_length
        self._batch_size = batch_size
        self._seed = seed
        self._stream = _deal(lengths, batch_size)
        self._steps = np.bincount(self._stream, lengths, batch_size).astype(np.int64)
        self._epoch = lru_cache(maxsize=2)(self._streams)

    @property
    def steps_per_epoch(self) -> int:
        """Batches until every episode has been seen once."""
        return -(-int(self._steps.max()) // self._sequence_length)

    @property
    def places_per_epoch(self) -> int:
        """Steps that an epoch has room for, padding included."""
        return self.steps_per_epoch * self._batch_size * self._sequence_length

    def _streams(self, epoch: int) -> list[_Stream]:
        order = permutation(len(self._lengths), self._seed, epoch)
        streams = []
        for stream in range(self._batch_size):
            episodes = order[self._stream[order] == stream]
            lengths = self._lengths[episodes]
            streams.append((episodes, np.cumsum(lengths) - lengths))
        return streams

    def pieces(self, step: int) -> tuple[list[Piece], int]:
        """Return what of its stream each row of batch `step` shows, and the T of the batch's shape `[B, T]`."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        begin = batch * self._sequence_length
        end = begin + self._sequence_length
        found: list[Piece] = []
        for row, (episodes, starts) in enumerate(self._epoch(epoch)):
            place = int(np.searchsorted(starts, begin, side="right")) - 1
            while place < len(episodes) and starts[place] < end:
                episode, start = int(episodes[place]), int(starts[place])
                first = max(begin - start, 0)
                stop = min(int(self._lengths[episode]), end - start)
                if first < stop:
                    found.append(Piece(row, start + first - begin, episode, first, stop - first))
                place += 1
        return found, self._sequence_length


def _deal(lengths: Int64[np.ndarray, " n"], streams: int) -> Int64[np.ndarray, " n"]:
    """Return the stream of each episode: the longest first, each to the stream that is shortest so far.

    The longest stream is then at most 4/3 of the shortest possible (Graham, SIAM J. Appl. Math. 17, 1969).
    """
    shortest = [(0, stream) for stream in range(streams)]
    heapify(shortest)
    dealt = np.zeros(len(lengths), np.int64)
    for episode in np.argsort(-lengths, kind="stable").tolist():
        steps, stream = shortest[0]
        dealt[episode] = stream
        heapreplace(shortest, (steps + int(lengths[episode]), stream))
    return dealt
