"""What stands in each batch, in every mode: laws over all lengths, and an order that must never change."""

import hashlib
from collections import Counter
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.datasets.packing import pack_rows
from brain_service.datasets.rows import Piece, Plan, RowPlan, window_rows
from brain_service.datasets.streams import StreamPlan
from brain_service.datasets.whole import EpisodePlan, bucket_lengths
from brain_service.errors import InvalidError

_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=24).map(lambda values: np.array(values, np.int64))
_sizes = st.integers(1, 16)
_batches = st.integers(1, 5)
_seeds = st.integers(0, 2**31)
_epochs = st.integers(0, 3)


def _every_step(lengths: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Counter[tuple[int, int]]:
    return Counter((episode, t) for episode, length in enumerate(lengths.tolist()) for t in range(length))


def _steps(pieces: list[Piece]) -> Counter[tuple[int, int]]:
    return Counter((piece.episode, piece.first + t) for piece in pieces for t in range(piece.steps))


def _require_no_overlap(pieces: list[Piece], batch_size: int, length: int) -> None:
    places = [(piece.row, piece.column + t) for piece in pieces for t in range(piece.steps)]
    assert len(set(places)) == len(places)
    assert all(0 <= row < batch_size and 0 <= column < length for row, column in places)
    assert places == sorted(places), "pieces come in the order of rows and columns"


@given(_lengths, _sizes, _batches, _seeds, _epochs, st.booleans())
def test_an_epoch_of_rows_holds_every_step_once(
    lengths: np.ndarray[tuple[int], np.dtype[np.int64]], size: int, batch: int, seed: int, epoch: int, packed: bool
) -> None:
    plan = RowPlan((pack_rows if packed else window_rows)(lengths, size), batch, size, seed)
    # Batches span epochs: take the rows of the epoch out of those that hold them.
    first, last = epoch * plan.rows, (epoch + 1) * plan.rows - 1
    found: list[Piece] = []
    for step in range(first // batch, last // batch + 1):
        pieces, length = plan.pieces(step)
        assert length == size
        _require_no_overlap(pieces, batch, size)
        found += [piece for piece in pieces if first <= step * batch + piece.row <= last]
    assert _steps(found) == _every_step(lengths)


@given(_lengths, _sizes)
def test_packing_never_takes_more_rows_and_within_a_row_only_the_first_piece_may_start_inside(
    lengths: np.ndarray[tuple[int], np.dtype[np.int64]], size: int
) -> None:
    packed, plain = pack_rows(lengths, size), window_rows(lengths, size)
    rows = len(packed.bounds) - 1
    assert -(-int(lengths.sum()) // size) <= rows <= len(plain.bounds) - 1
    # Any two rows together hold more than one row takes, else they would be one: the last pieces of best fit.
    filled = np.add.reduceat(packed.pieces[:, 3], packed.bounds[:-1])
    assert sum(1 for steps in filled if 2 * steps <= size) <= 1
    for row in range(rows):
        starts = packed.pieces[packed.bounds[row] : packed.bounds[row + 1], 2]
        assert (np.diff((starts == 0).astype(int)) >= 0).all(), "those that start inside come first"


def test_short_episodes_are_packed_tightly() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 500).astype(np.int64)
    plans = [RowPlan(make(lengths, 64), 8, 64, 0) for make in (window_rows, pack_rows)]
    plain, packed = (lengths.sum() / plan.places_per_epoch for plan in plans)
    assert plain < 0.55
    assert packed > 0.93


@given(_lengths, _sizes, _batches, _seeds, _epochs)
def test_streams_show_each_episode_in_order_and_go_on_from_batch_to_batch(
    lengths: np.ndarray[tuple[int], np.dtype[np.int64]], size: int, batch: int, seed: int, epoch: int
) -> None:
    batch = min(batch, len(lengths))
    plan = StreamPlan(lengths, batch, size, seed)
    rows: list[list[tuple[int, int]]] = [[] for _ in range(batch)]
    for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        pieces, length = plan.pieces(step)
        assert length == size
        _require_no_overlap(pieces, batch, size)
        for row, its in groupby(pieces, key=lambda piece: piece.row):
            end = 0
            for piece in its:
                assert piece.column == end, "no gap inside a row"
                end = piece.column + piece.steps
                rows[row] += [(piece.episode, piece.first + t) for t in range(piece.steps)]
    for steps in rows:
        for episode, run in groupby(steps, key=lambda pair: pair[0]):
            assert [t for _, t in run] == list(range(lengths[episode]))
    assert Counter(step for steps in rows for step in steps) == _every_step(lengths)


def test_streams_are_about_as_long() -> None:
    lengths = np.random.default_rng(1).integers(50, 300, 400).astype(np.int64)
    plan = StreamPlan(lengths, 32, 64, 0)
    assert lengths.sum() / plan.places_per_epoch > 0.97


def test_fewer_episodes_than_streams_is_said() -> None:
    with pytest.raises(InvalidError, match=r"batch_size 4: .* there are 3") as caught:
        StreamPlan(np.array([9, 9, 9]), 4, 2, 0)
    assert caught.value.field == "batch_size"


@given(_lengths, _batches, _seeds, _epochs)
def test_whole_episodes_come_once_an_epoch_in_the_smallest_bucket(
    lengths: np.ndarray[tuple[int], np.dtype[np.int64]], batch: int, seed: int, epoch: int
) -> None:
    plan = EpisodePlan(lengths, batch, None, seed)
    seen: list[int] = []
    for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        pieces, length = plan.pieces(step)
        assert 0 < len(pieces) <= batch
        assert length in plan.buckets
        for row, piece in enumerate(pieces):
            assert piece == Piece(row, 0, piece.episode, 0, lengths[piece.episode])
            assert length == min(bucket for bucket in plan.buckets if bucket >= piece.steps)
        seen += [piece.episode for piece in pieces]
    assert sorted(seen) == list(range(len(lengths)))


def test_buckets_are_halves_down_to_eight() -> None:
    assert bucket_lengths(100) == (7, 13, 25, 50, 100)
    assert bucket_lengths(8) == (8,)
    assert bucket_lengths(1) == (1,)


def test_an_episode_beyond_the_longest_bucket_is_named() -> None:
    with pytest.raises(InvalidError, match="episode 1 has 30 steps, more than sequence_length 16") as caught:
        EpisodePlan(np.array([5, 30, 31]), 2, 16, 0)
    assert caught.value.field == "sequence_length"


def _plans(lengths: np.ndarray[tuple[int], np.dtype[np.int64]], seed: int) -> dict[str, Plan]:
    return {
        "windows": RowPlan(window_rows(lengths, 8), 4, 8, seed),
        "packed": RowPlan(pack_rows(lengths, 8), 4, 8, seed),
        "episodes": EpisodePlan(lengths, 4, None, seed),
        "streams": StreamPlan(lengths, 4, 8, seed),
    }


@given(st.lists(st.integers(1, 40), min_size=4, max_size=12), _seeds, st.lists(st.integers(0, 60), max_size=6))
def test_a_batch_depends_on_its_step_alone(lengths: list[int], seed: int, steps: list[int]) -> None:
    used = _plans(np.array(lengths, np.int64), seed)
    for step in steps:
        fresh = _plans(np.array(lengths, np.int64), seed)
        for mode, plan in used.items():
            assert plan.pieces(step) == fresh[mode].pieces(step), mode


# A trainer that resumes under another version of NumPy, Grain or this package must get the batches that it would
# have got: if these digests change, every run in progress breaks.
@pytest.mark.parametrize(
    ("mode", "digest"),
    [
        ("windows", "e1e6ac5e2bc9c3e1"),
        ("packed", "236bd33ba8ebc9d0"),
        ("episodes", "20fee71473249bfc"),
        ("streams", "f562af55f007bc53"),
    ],
)
def test_the_order_is_fixed_for_ever(mode: str, digest: str) -> None:
    lengths = np.array([5, 12, 1, 8, 3, 30, 17, 2, 8, 9], np.int64)
    plan = _plans(lengths, 7)[mode]
    order = repr([[tuple(piece) for piece in plan.pieces(step)[0]] for step in (*range(20), 1000)])
    assert hashlib.sha256(order.encode()).hexdigest()[:16] == digest
