import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from brain_service.training.evaluation.intervals import paired_bootstrap, wilson


@given(st.integers(1, 400), st.data())
def test_wilsons_interval_is_scipys(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_without_a_trial_everything_is_possible() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_pairing_cancels_what_is_hard_for_both() -> None:
    rng = np.random.default_rng(0)
    hard = rng.uniform(1, 100, 20)
    weights = np.full(20, 10)
    low, high = paired_bootstrap(hard + 1.0, hard, weights)
    assert low == pytest.approx(0.1) == high
    low, high = paired_bootstrap(hard + 1.0, rng.permutation(hard), weights)
    assert low < 0 < high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        first = rng.normal(0.3, 1.0, 30)
        low, high = paired_bootstrap(first, np.zeros(30), np.ones(30, np.int64), seed=trial)
        hits += low <= 0.3 <= high
    assert 180 <= hits <= 198


@pytest.mark.parametrize("episodes", [2, 3, 5])
def test_few_episodes_call_nothing_certain_more_often_than_many(episodes: int) -> None:
    rng = np.random.default_rng(episodes)
    weights, wrong = np.full(episodes, 10), 0
    for trial in range(200):
        hard = rng.uniform(5, 15, episodes)
        wrong += paired_bootstrap(hard + rng.normal(0, 0.2, episodes), hard, weights, seed=trial)[0] > 0
    assert wrong <= 16  # 5 to 7 are to be expected; without the widening 50, 26 and 18


def test_one_episode_has_no_interval() -> None:
    assert paired_bootstrap(np.array([2.0]), np.array([1.0]), np.array([10])) == (-np.inf, np.inf)
