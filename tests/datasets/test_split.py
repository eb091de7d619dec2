"""Train and validation by hash of the id."""

import random

from hypothesis import given
from hypothesis import strategies as st

from brain_service.datasets.split import assign_splits

_ids = st.lists(st.text(max_size=12), unique=True, max_size=40)


@given(_ids, st.floats(0.001, 0.999))
def test_two_episodes_or_more_give_both_splits(ids: list[str], fraction: float) -> None:
    splits = assign_splits(ids, fraction)
    assert len(splits) == len(ids)
    assert set(splits) == {0: set(), 1: {"train"}}.get(len(ids), {"train", "val"})


@given(_ids, st.randoms())
def test_the_order_of_the_episodes_does_not_matter(ids: list[str], chance: random.Random) -> None:
    shuffled = list(ids)
    chance.shuffle(shuffled)
    expected = dict(zip(ids, assign_splits(ids, 0.3), strict=True))
    assert dict(zip(shuffled, assign_splits(shuffled, 0.3), strict=True)) == expected


def test_no_episode_changes_sides_as_more_are_recorded() -> None:
    ids = [f"episode-{n}" for n in range(400)]
    early, late = assign_splits(ids[:100], 0.2), assign_splits(ids, 0.2)
    assert late[:100] == early
    assert 50 < late.count("val") < 110


def test_a_fraction_of_zero_keeps_everything_for_training() -> None:
    assert assign_splits(["a", "b", "c"], 0.0) == ["train"] * 3
