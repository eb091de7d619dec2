"""The shuffle that must never change."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from brain_service.datasets.shuffle import permutation


@given(st.integers(1, 200), st.integers(-(2**63), 2**64), st.integers(0, 1000))
def test_every_number_comes_once(count: int, seed: int, epoch: int) -> None:
    assert sorted(permutation(count, seed, epoch).tolist()) == list(range(count))


def test_the_order_is_fixed_for_ever() -> None:
    # A trainer that resumes under another version of NumPy must get the batches that it would have got.
    assert permutation(10, 7, 0).tolist() == [8, 5, 3, 2, 9, 7, 6, 0, 1, 4]
    assert permutation(10, 7, 1).tolist() == [6, 7, 4, 2, 8, 9, 5, 3, 1, 0]


def test_places_are_near_uniform_over_seeds_and_epochs() -> None:
    for orders in (
        [permutation(8, seed, 0) for seed in range(2000)],
        [permutation(8, 3, epoch) for epoch in range(2000)],
    ):
        counts = np.stack([np.bincount(place, minlength=8) for place in np.array(orders).T])
        # 250 expected in each cell, standard deviation 15.
        assert counts.min() > 180
        assert counts.max() < 320
