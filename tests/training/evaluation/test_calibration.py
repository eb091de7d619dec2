import numpy as np
import pytest

from brain_service.training.evaluation.calibration import calibration


def test_errors_of_the_predicted_size_are_calibrated() -> None:
    found = calibration(np.random.default_rng(0).standard_normal((20_000, 2)))
    assert found.coverage == pytest.approx(found.levels, abs=0.01)
    assert found.error < 0.01
    assert found.histogram == pytest.approx([0.1] * 10, abs=0.01)


@pytest.mark.parametrize(("spread", "sure"), [(3.0, True), (0.3, False)])
def test_a_model_too_sure_or_too_timid_is_found_out(spread: float, sure: bool) -> None:
    found = calibration(spread * np.random.default_rng(0).standard_normal((20_000, 1)))
    assert all((c < p) is sure for c, p in zip(found.coverage, found.levels, strict=True))
    edges, middle = found.histogram[0], found.histogram[4]
    assert (edges > middle) is sure


def test_each_element_has_its_own_coverage() -> None:
    scaled = np.random.default_rng(0).standard_normal((20_000, 2)) * [1.0, 4.0]
    half = calibration(scaled).coverage_by_element[0]
    assert half[0] == pytest.approx(0.5, abs=0.02)
    assert half[1] < 0.2
