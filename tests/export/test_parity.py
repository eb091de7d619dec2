"""The measure itself, on steps of a few lines: it sees a lost state, a NaN, a state that does not travel."""

from typing import Any

import numpy as np
import pytest

from brain_service.export.parity import (
    GOLDEN_RESET,
    GOLDEN_STEPS,
    LONG_STEPS,
    SWITCH_STEPS,
    Inputs,
    Stepper,
    difference,
    drive,
    measure_switch,
    record_reference,
)
from tests.export.models import NORMALISER

CARRY = {"sum": 2, "count": 1}
LIMITS = NORMALISER.action_low, NORMALISER.action_high


def counting(carry: Any, observation: Any, previous_action: Any, previous_reward: Any, is_first: Any) -> Any:
    """Sum what was done and count the steps since the episode began; the action, [1, 3, 2], tells all of it."""
    keep = 1 - is_first[:, None]
    total = carry[0] * keep + previous_action
    count = carry[1] * keep + 1
    first = total * np.float32(0.01) + count + observation[:, :2]
    return (total, count), np.stack([first, first + 1, first - 1], axis=1)


class Forgetful:
    """The same numbers from a state of its own: what no other form can take over."""

    def __init__(self) -> None:
        self._carry: Any = tuple(np.zeros((1, size), np.float32) for size in CARRY.values())

    def __call__(self, carry: Any, *inputs: Any) -> Any:
        self._carry, action = counting(self._carry, *inputs)
        return carry, action


def test_the_reference_is_one_run_whose_actions_come_back_as_inputs() -> None:
    reference = record_reference(counting, CARRY, NORMALISER)
    golden = reference.golden
    assert golden.action.shape == (GOLDEN_STEPS, 3, 2) and reference.long_action.shape == (LONG_STEPS, 3, 2)
    assert np.flatnonzero(golden.is_first).tolist() == [0, GOLDEN_RESET]
    assert np.flatnonzero(reference.long.is_first).tolist() == [0]
    for inputs, action in ((Inputs.of(golden), golden.action), (reference.long, reference.long_action)):
        np.testing.assert_array_equal(inputs.previous_action[1:], action[:-1, 0])
        np.testing.assert_array_equal(drive(counting, CARRY, inputs).action, action)
    counts = drive(counting, CARRY, Inputs.of(golden)).action[:, 1] - golden.action[:, 0]
    np.testing.assert_allclose(counts, 1, rtol=1e-5)
    assert golden.action.dtype == np.float32


def test_a_run_takes_time() -> None:
    assert drive(counting, CARRY, record_reference(counting, CARRY, NORMALISER).long).step_us > 0


def test_a_difference_is_a_share_of_the_range_and_the_worst_of_all() -> None:
    expected = np.zeros((4, 3, 2), np.float32)
    actual = expected.copy()
    actual[2, 1] = [0.2, 0.06]
    assert difference(actual, expected, *LIMITS) == pytest.approx(0.1)
    assert difference(actual, expected, LIMITS[0], LIMITS[0]) == pytest.approx(0.2)
    actual[3, 0, 0] = np.nan
    assert np.isnan(difference(actual, expected, *LIMITS))


def test_a_form_that_does_not_reset_is_seen() -> None:
    def unresetting(carry: Any, observation: Any, previous_action: Any, previous_reward: Any, _: Any) -> Any:
        return counting(carry, observation, previous_action, previous_reward, np.zeros(1, np.float32))

    golden = record_reference(counting, CARRY, NORMALISER).golden
    inputs = Inputs.of(golden)
    lost = drive(unresetting, CARRY, inputs).action
    np.testing.assert_array_equal(lost[:GOLDEN_RESET], golden.action[:GOLDEN_RESET])
    assert difference(lost, golden.action, *LIMITS) > 1


def test_a_session_may_move_between_forms_that_keep_their_state_in_the_carry() -> None:
    reference = record_reference(counting, CARRY, NORMALISER)
    assert measure_switch(counting, counting, CARRY, reference, NORMALISER) == 0


@pytest.mark.parametrize("forms", [(counting, Forgetful()), (Forgetful(), counting)])
def test_a_state_that_does_not_travel_is_seen_whichever_form_comes_first(forms: tuple[Stepper, Stepper]) -> None:
    reference = record_reference(counting, CARRY, NORMALISER)
    # Each alone is right: only the switch shows it.
    alone = drive(Forgetful(), CARRY, reference.long).action
    np.testing.assert_array_equal(alone, reference.long_action)
    assert measure_switch(forms[0], forms[1], CARRY, reference, NORMALISER) > 1


def test_a_switch_happens_half_way() -> None:
    reference = record_reference(counting, CARRY, NORMALISER)
    calls: list[int] = []

    def other(*arguments: Any) -> Any:
        calls.append(1)
        return counting(*arguments)

    drive(counting, CARRY, reference.long.first(SWITCH_STEPS), then=other)
    assert len(calls) == SWITCH_STEPS // 2 == 32
