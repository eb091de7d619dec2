import numpy as np
import pytest

from tests.bench.learning.statistics import interquartile_mean, returns, successes


def test_successes_of_all_seeds_count_together() -> None:
    found = successes([[1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    assert found.value == 7 / 8
    assert (found.low, found.high) == pytest.approx((0.5291, 0.9776), abs=1e-4)


def test_an_interval_of_returns_knows_that_seeds_differ() -> None:
    rng = np.random.default_rng(0)
    same = rng.normal(0.5, 0.1, (3, 100))
    apart = same + np.asarray([[-0.3], [0.0], [0.3]])
    narrow, wide = returns(same.tolist()), returns(apart.tolist())
    assert narrow.value == pytest.approx(wide.value)
    assert narrow.high - narrow.low < 0.1 < wide.high - wide.low
    assert not wide.below(narrow)
    assert returns((same - 0.3).tolist()).below(narrow)


def test_the_interquartile_mean_forgets_the_ends() -> None:
    assert interquartile_mean([[-100.0, 1.0], [3.0, 100.0]]) == 2.0
