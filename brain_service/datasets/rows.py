"""What stands in each batch: a plan made of the episodes' lengths alone, a pure function of the step.

Plan ── RowPlan      rows of windows, or of packed windows, shuffled anew each epoch
    ├── EpisodePlan  whole episodes, those of one bucket of lengths together
    └── StreamPlan   B streams of episodes in time order, for truncated backpropagation
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from brain_service.datasets.shuffle import permutation

__all__ = ["Piece", "Plan", "RowPlan", "RowTable", "plan_windows", "window_rows"]


class Piece(NamedTuple):
    """`steps` steps of an episode from step `first` on, at `column` and following of row `row` of a batch."""

    row: int
    column: int
    episode: int
    first: int
    steps: int


@runtime_checkable
class Plan(Protocol):
    """Which steps stand where in each batch of B rows."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches until everything has been seen once, rounded up."""
        ...

    @property
    def places_per_epoch(self) -> int:
        """Steps that an epoch has room for, padding included."""
        ...

    def pieces(self, step: int) -> tuple[list[Piece], int]:
        """Return the pieces of batch `step`, in the order of rows and columns, and the T of its shape `[B, T]`."""
        ...


@dataclass(frozen=True, eq=False)
class RowTable:
    """Rows of at most T steps. Row r is made of the pieces `bounds[r]` to `bounds[r + 1]`.

    A piece is (column, episode, first step, steps).
    """

    pieces: Int64[np.ndarray, "pieces 4"]
    bounds: Int64[np.ndarray, " bounds"]


class RowPlan:
    """B rows a batch out of a table, in a new order each epoch.

    Epochs follow each other without a gap: a batch may hold the end of one and the start of the next.
    """

    def __init__(self, table: RowTable, batch_size: int, sequence_length: int, seed: int) -> None:
        self._table = table
        self._batch_size = batch_size
        self._sequence_length = sequence_length
        self._seed = seed

    @property
    def rows(self) -> int:
        """Rows an epoch."""
        return len(self._table.bounds) - 1

    @property
    def steps_per_epoch(self) -> int:
        """Batches until every row has been seen once, rounded up."""
        return -(-self.rows // self._batch_size)

    @property
    def places_per_epoch(self) -> int:
        """Steps that the rows have room for."""
        return self.rows * self._sequence_length

    def pieces(self, step: int) -> tuple[list[Piece], int]:
        """Return what the rows of batch `step` are made of, and the T of its shape `[B, T]`."""
        found: list[Piece] = []
        position = step * self._batch_size
        for row in range(self._batch_size):
            epoch, place = divmod(position + row, self.rows)
            chosen = int(permutation(self.rows, self._seed, epoch)[place])
            start, stop = self._table.bounds[chosen : chosen + 2].tolist()
            found += [Piece(row, *piece) for piece in self._table.pieces[start:stop].tolist()]
        return found, self._sequence_length


def window_rows(lengths: Int64[np.ndarray, " n"], sequence_length: int) -> RowTable:
    """Return a row for every window: the last one of an episode may be shorter than T."""
    windows = plan_windows(lengths, sequence_length)
    columns = np.zeros((len(windows), 1), np.int64)
    return RowTable(np.concatenate([columns, windows], axis=1), np.arange(len(windows) + 1, dtype=np.int64))


def plan_windows(lengths: Int64[np.ndarray, " n"], sequence_length: int) -> Int64[np.ndarray, "windows 3"]:
    """Return (episode, first step, steps) of every window, shape `[windows, 3]`: each step lies in exactly one."""
    counts = -(-lengths // sequence_length)
    episodes = np.repeat(np.arange(len(lengths), dtype=np.int64), counts)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    firsts = (np.arange(len(episodes), dtype=np.int64) - before) * sequence_length
    steps = np.minimum(lengths[episodes] - firsts, sequence_length)
    return np.stack([episodes, firsts, steps], axis=1)
