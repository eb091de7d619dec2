"""The control period's warning, and percentiles over the last answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.inference.latency import LatencyWindow
from brain_service.inference.sessions import ControlPeriod


def warnings_after(trained_s: float | None, period_s: float, steps: int) -> tuple[str, ...]:
    watch = ControlPeriod(trained_s)
    warnings: tuple[str, ...] = ()
    for step in range(steps):
        warnings = watch.observe(10**12 + int(step * period_s * 1e9))
    return warnings


@pytest.mark.parametrize(
    ("period_s", "warned"), [(0.02, False), (0.0235, False), (0.0165, False), (0.0245, True), (0.015, True)]
)
def test_more_than_a_fifth_off_the_trained_period_warns(period_s: float, warned: bool) -> None:
    warnings = warnings_after(0.02, period_s, 30)
    assert bool(warnings) == warned
    assert all("20 ms" in warning for warning in warnings)


def test_no_warning_before_the_period_is_known_nor_without_a_trained_one() -> None:
    assert warnings_after(0.02, 0.2, 10) == ()
    assert warnings_after(None, 0.2, 100) == ()


def test_one_late_step_is_no_warning() -> None:
    watch = ControlPeriod(0.02)
    times_s = [*np.arange(50) * 0.02, 49 * 0.02 + 0.05]
    assert [watch.observe(int(time_s * 1e9)) for time_s in times_s][-1] == ()


@given(st.lists(st.floats(1.0, 1e6, width=32), min_size=1, max_size=60), st.integers(1, 20))
def test_percentiles_are_those_of_the_last_values(values: list[float], size: int) -> None:
    window = LatencyWindow(size)
    for value in values:
        window.add(value)
    summary = window.summary()
    p50, p99 = np.percentile(np.asarray(values[-size:], np.float32), [50, 99])
    assert summary == {"p50": round(float(p50), 1), "p99": round(float(p99), 1), "count": len(values)}


def test_an_empty_window_has_no_percentiles() -> None:
    assert LatencyWindow().summary() == {"p50": None, "p99": None, "count": 0}
