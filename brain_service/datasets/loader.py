"""Fixed-size training batches of sequences: a pure function of (manifest, seed, step).

Nothing but the step number is state, so a trainer that resumes at step n gets the batches that it would have got,
on any number of hosts: host h of H makes rows `h * B / H` to `(h + 1) * B / H - 1` of the same global batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from brain_service.datasets.access import Steps, Window
from brain_service.datasets.dataset import Dataset, EpisodeVectors, open_dataset
from brain_service.datasets.frames import Frames
from brain_service.datasets.packing import pack_rows
from brain_service.datasets.pipeline import BatchIterator
from brain_service.datasets.rows import Piece, Plan, RowPlan, window_rows
from brain_service.datasets.streams import StreamPlan
from brain_service.datasets.whole import EpisodePlan
from brain_service.errors import InvalidError
from brain_service.pixels import ImageInput

__all__ = ["Batch", "Dataset", "EpisodeVectors", "Mode", "SequenceLoader", "open_dataset"]

IMITATED_ROLES = ("expert", "intervention")

Mode = Literal["windows", "packed", "episodes", "streams"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True)
class Batch:
    """B rows of T steps, float32, raw units; zeros where a row holds no step.

    `previous_action` and `previous_reward` are those of step t-1, also where a row starts in the middle of an
    episode; they are zero where `is_first` is 1. `is_first` is 1 where the state must be fresh: on the first step
    of an episode, and where a sequence follows another one in its row.

    The masks are 1 or 0: `mask` for real steps; `valid_mask` where action and reward mean something as well;
    `loss_mask` where the action is one to imitate: valid, and its control role among the loader's roles;
    `next_mask` where step t+1 is in the same sequence, so that its observation is a target.

    `segment_id` counts the sequences of a row from 1; 0 where there is no step. `image` is of size 0 where the
    loader is for none.
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
    segment_id: Int32[np.ndarray, "B T"]
    image: UInt8[np.ndarray, "B T h w C"]


class SequenceLoader:
    """Batches of `batch_size` rows of `sequence_length` steps from one split of a dataset.

    What a row is, the mode says:

    - `windows`: one window of an episode, shuffled over all episodes anew each epoch.
    - `packed`: several short windows behind each other; else as `windows`.
    - `episodes`: one whole episode, padded to a bucket's length; `sequence_length` bounds it (None: the longest).
    - `streams`: the next T steps of a stream of episodes, going on where this row of the batch before ended.

    `roles` are the control roles whose actions are imitated; steps of other roles are there, with `loss_mask` 0.
    `batch_size` counts the rows of all hosts together; this host makes its share of them. `image` says which image
    of the observation is decoded along, and to which size; without one no image is touched.

    Raises:
        InvalidError: a size or the host is impossible, or the mode cannot be had of these episodes.
        NotFoundError: the dataset has no such split.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        batch_size: int,
        sequence_length: int | None,
        seed: int,
        roles: Sequence[str] = IMITATED_ROLES,
        mode: Mode = "windows",
        host_index: int = 0,
        host_count: int = 1,
        image: ImageInput | None = None,
    ) -> None:
        _check(batch_size, sequence_length, mode, host_index, host_count)
        self.dataset = dataset
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.mode = mode
        self.roles = frozenset(roles)
        lengths = dataset.lengths(split)
        if not len(lengths):
            raise InvalidError(
                f"{dataset.location}: split {split!r} is empty; record more episodes", field="split"
            )
        self._steps = int(lengths.sum())
        self._plan = _plan(mode, lengths, batch_size, sequence_length, seed)
        self._rows = range(host_index * batch_size // host_count, (host_index + 1) * batch_size // host_count)
        self._sizes = (dataset.observation_size, dataset.action_size)
        self._frames = None if image is None else Frames(dataset, split, image)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of shape `[B, T]` until every step of every episode has been seen once, rounded up."""
        return self._plan.steps_per_epoch

    @property
    def efficiency(self) -> float:
        """Share of an epoch's places that hold a step and no padding, in (0, 1]."""
        return self._steps / self._plan.places_per_epoch

    def pieces(self, step: int) -> list[Piece]:
        """Return which steps stand where in batch `step`, of all hosts' rows.

        Raises:
            InvalidError: `step` is negative.
        """
        _check_step(step)
        return self._plan.pieces(step)[0]

    def batch(self, step: int) -> Batch:
        """Return this host's rows of batch `step` (counted from 0, without end).

        Raises:
            InvalidError: `step` is negative.
            CorruptDataError: a record fails its checksum; names shard and byte.
            UnavailableError: the bucket cannot be reached.
        """
        _check_step(step)
        pieces, length = self._plan.pieces(step)
        ours = [piece for piece in pieces if piece.row in self._rows]
        wanted = [Steps(piece.episode, piece.first - _lead(piece), piece.first + piece.steps) for piece in ours]
        shape = (0, 0, 0) if self._frames is None else self._frames.image.shape
        batch = _empty(len(self._rows), length, *self._sizes, shape)
        segment = row = -1
        for piece, window in zip(ours, self.dataset.windows(self.split, wanted), strict=True):
            segment = 1 if piece.row != row else segment + 1
            row = piece.row
            _place(batch, piece._replace(row=row - self._rows.start), window, segment, self.roles)
        if self._frames is not None:
            for piece in ours:
                span = Steps(piece.episode, piece.first, piece.first + piece.steps)
                here = slice(piece.column, piece.column + piece.steps)
                batch.image[piece.row - self._rows.start, here] = self._frames.window(span)
        return batch

    def batches(self, start: int = 0, *, prefetch: int = 2, workers: int = 0) -> BatchIterator[Batch]:
        """Return an iterator over the batches of shape `[B, T, ...]` from step `start` on, without end.

        A thread, or `workers` processes, makes `prefetch` of them ahead. The iterator's state is the step alone.
        Close it to end what works for it.

        Raises:
            InvalidError: `start`, `prefetch` or `workers` is negative.
        """
        _check_step(start)
        return BatchIterator(self.batch, start, prefetch=prefetch, workers=workers)

    def __iter__(self) -> BatchIterator[Batch]:
        return self.batches()


def _check(batch_size: int, sequence_length: int | None, mode: str, host_index: int, host_count: int) -> None:
    if mode not in MODES:
        raise InvalidError(f"mode {mode!r} is none of {', '.join(MODES)}", field="mode")
    if sequence_length is None and mode != "episodes":
        raise InvalidError(
            f"mode {mode!r} needs a sequence_length; only 'episodes' does without", field="sequence_length"
        )
    for field, value in (
        ("batch_size", batch_size),
        ("sequence_length", sequence_length),
        ("host_count", host_count),
    ):
        if value is not None and value <= 0:
            raise InvalidError(f"{field} {value} is not positive", field=field)
    if batch_size % host_count:
        raise InvalidError(
            f"batch_size {batch_size} is not divisible by host_count {host_count}: each host makes as many rows; "
            f"use {batch_size // host_count * host_count or host_count} or "
            f"{(batch_size // host_count + 1) * host_count}",
            field="batch_size",
        )
    if not 0 <= host_index < host_count:
        raise InvalidError(f"host_index {host_index} is not in 0 to {host_count - 1}", field="host_index")


def _check_step(step: int) -> None:
    if step < 0:
        raise InvalidError(f"batch step {step} is negative; steps count from 0", field="step")


def _plan(
    mode: Mode, lengths: Int64[np.ndarray, " n"], batch_size: int, sequence_length: int | None, seed: int
) -> Plan:
    if mode == "episodes":
        return EpisodePlan(lengths, batch_size, sequence_length, seed)
    assert sequence_length is not None  # checked for every other mode
    if mode == "streams":
        return StreamPlan(lengths, batch_size, sequence_length, seed)
    table = (pack_rows if mode == "packed" else window_rows)(lengths, sequence_length)
    return RowPlan(table, batch_size, sequence_length, seed)


def _empty(rows: int, length: int, observation_size: int, action_size: int, image: tuple[int, int, int]) -> Batch:
    shape = (rows, length)

    def zeros(*size: int) -> Float32[np.ndarray, "..."]:
        return np.zeros((*shape, *size), np.float32)

    return Batch(
        observation=zeros(observation_size),
        action=zeros(action_size),
        previous_action=zeros(action_size),
        previous_reward=zeros(),
        reward=zeros(),
        is_first=zeros(),
        is_terminal=zeros(),
        mask=zeros(),
        valid_mask=zeros(),
        loss_mask=zeros(),
        next_mask=zeros(),
        segment_id=np.zeros(shape, np.int32),
        image=np.zeros((*shape, *image), np.uint8),
    )


def _lead(piece: Piece) -> int:
    """Return 1 where the step before the piece is read along: a row knows what was done before its first step."""
    return int(piece.first > 0 and piece.column == 0)


def _place(batch: Batch, piece: Piece, window: Window, segment: int, roles: frozenset[str]) -> None:
    """Write a piece's steps into its row."""
    row, lead = piece.row, _lead(piece)
    here = slice(piece.column, piece.column + piece.steps)
    after = slice(here.start + 1 - lead, here.stop)
    batch.observation[row, here] = window.observation[lead:]
    batch.action[row, here] = window.action[lead:]
    batch.previous_action[row, after] = window.action[:-1]
    batch.previous_reward[row, after] = window.reward[:-1]
    batch.reward[row, here] = window.reward[lead:]
    batch.is_first[row, here] = window.is_first[lead:]
    if piece.column:
        batch.is_first[row, here.start] = 1
    batch.is_terminal[row, here] = window.is_terminal[lead:]
    batch.mask[row, here] = 1
    batch.valid_mask[row, here] = window.valid[lead:]
    imitated = np.array([role in roles for role in window.roles])[window.role[lead:]]
    batch.loss_mask[row, here] = window.valid[lead:] & imitated
    batch.next_mask[row, here.start : here.stop - 1] = 1
    batch.segment_id[row, here] = segment
