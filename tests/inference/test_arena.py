"""Shared memory: every block its own bytes, seen by both sides, and of a size nobody can change."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.errors import CorruptDataError
from brain_service.inference.arena import Arena, Layout, Row

SIZES = st.integers(1, 200)
LAYOUTS = st.builds(
    Layout,
    st.dictionaries(st.sampled_from("abcd"), SIZES, min_size=1, max_size=4),
    SIZES,
    SIZES,
    st.integers(1, 8),
)


def blocks(row: Row) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return [*row.carry, row.request, row.response]


@given(LAYOUTS, st.integers(1, 5))
def test_blocks_are_aligned_of_the_right_size_and_apart(layout: Layout, capacity: int) -> None:
    arena = Arena.create(layout, capacity)
    every = [block for index in range(capacity) for block in blocks(arena.row(index))]
    for number, block in enumerate(every):
        assert block.ctypes.data % 64 == 0
        assert not block.any()
        block.fill(number + 1)
    for number, block in enumerate(every):
        assert (block == number + 1).all()
    row = arena.row(0)
    sizes = [layout.carry_size, layout.carry_size, layout.request_size, layout.response_size]
    assert [block.shape for block in blocks(row)] == [(1, size) for size in sizes]
    row.clear()
    assert not any(block.any() for block in blocks(row))
    arena.close()


def test_both_sides_see_the_same_floats() -> None:
    layout = Layout({"fast": 3, "slow": 2}, observation=4, action=2, horizon=3)
    arena = Arena.create(layout, 3)
    other = Arena.attach(os.dup(arena.fd), layout, 3)
    arena.row(1).request[0] = np.arange(8)
    other.row(1).response[0] = 7.0
    assert other.row(1).request.tolist() == [list(range(8))] and arena.row(1).response.tolist() == [[7.0] * 6]
    assert not other.row(0).request.any() and not other.row(2).request.any()
    arena.close()
    # The mapping outlives the descriptor, and one side's close.
    assert other.row(1).request[0, 7] == 7
    other.close()
    other.close()


def test_the_size_is_checked_and_sealed() -> None:
    layout = Layout({"fast": 3}, 4, 2, 1)
    arena = Arena.create(layout, 2)
    for length in (0, layout.row_bytes, 100 * layout.row_bytes):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd, length)
    with pytest.raises(CorruptDataError, match="expected"):
        Arena.attach(arena.fd, layout, 3)
    arena.close()


@pytest.mark.parametrize("index", [-1, 2, 2**32 - 1])
def test_a_row_outside_is_refused(index: int) -> None:
    arena = Arena.create(Layout({"fast": 3}, 4, 2, 1), 2)
    with pytest.raises(CorruptDataError, match=r"outside 0\.\.1"):
        arena.row(index)
    arena.close()


def test_an_image_keeps_its_bytes_through_every_copy_of_a_request() -> None:
    # Whatever floats four of its bytes happen to be: infinities, quiet and signalling NaNs, denormals.
    layout = Layout({"fast": 3}, 4, 2, 1, image=(5, 7, 3))
    assert layout.request_size == 4 + 2 + 2 + 27 and layout.image_bytes == 105
    arena = Arena.create(layout, 4)
    rng = np.random.default_rng(0)
    nasty = np.asarray([0x7F800001, 0xFF800001, 0x7FC00000, 0x00000001, 0xFF7FFFFF], np.uint32).view(np.uint8)
    images = rng.integers(0, 256, (4, 5, 7, 3), np.uint8)
    images.reshape(4, -1)[:, : len(nasty)] = nasty
    for index, image in enumerate(images):
        request = arena.row(index).request[0]
        layout.put(request, (np.arange(4.0), np.arange(2.0), np.ones(1), np.zeros(1), image))
        assert request[: layout.vector_size].tolist() == [0, 1, 2, 3, 0, 1, 1, 0]
    assert np.array_equal(layout.image_of(arena.rows.request), images)
    gathered = np.zeros((3, layout.request_size), np.float32)
    gathered[1:] = arena.rows.request[np.asarray([3, 1])]
    assert np.array_equal(layout.image_of(gathered[1:]), images[[3, 1]])
    history = np.concatenate([arena.row(0).request[0].copy(), arena.row(2).request[0].copy()])
    saved = np.frombuffer(history.astype("<f4").tobytes(), "<f4").astype(np.float32).reshape(2, -1)
    assert np.array_equal(layout.image_of(saved), images[[0, 2]])
    arena.close()
