"""What counts as a model's misconduct, on actions made by hand."""

import numpy as np
import pytest

from brain_service.export.bundle import Golden, Manifest
from brain_service.export.manifest import Parity
from brain_service.inference.conduct import Conduct, Usual, fault, usual_of_golden
from brain_service.settings import RollbackSettings
from brain_service.spec import EpisodeSpec, Feature

RULES = RollbackSettings(window_steps=100, min_steps=20)


def manifest(low: tuple[float, ...] = (-5.0, 0.0), high: tuple[float, ...] = (5.0, 1.0)) -> Manifest:
    return Manifest(
        config={},
        spec=EpisodeSpec({"x": Feature("float32")}, {"command": Feature("float32", (2,))}),
        action_low=low,
        action_high=high,
        normalisation={},
        carry={"h": 1},
        action_horizon=1,
        control_period_s=None,
        parity={"jax": Parity(0.0, 1e-5)},
    )


def actions(*rows: tuple[float, float]) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return [np.array(row, np.float32) for row in rows]


def lived(steps: int, *cycle: tuple[float, float]) -> Conduct:
    """The conduct of a session that repeats a cycle of actions."""
    conduct, previous = Conduct(manifest(), RULES.window_steps), None
    for step in range(steps):
        action = np.array(cycle[step % len(cycle)], np.float32)
        conduct.answered(action, previous)
        previous = action
    return conduct


def test_calm_actions_are_no_fault() -> None:
    assert fault(lived(500, (0.0, 0.5), (0.5, 0.55)), Usual(), RULES) is None


def test_shares_are_measured_in_the_action_range() -> None:
    conduct = lived(100, (5.0, 0.5), (4.0, 0.25))
    assert conduct.limit_share == pytest.approx(0.25)  # one of two components, every other step
    usual = conduct.usual()
    assert usual.jump == pytest.approx(0.25)  # the second component: a quarter of 0..1
    assert conduct.jump_share(0.2) == pytest.approx(0.99)  # nothing comes before the first action
    assert conduct.jump_share(0.3) == 0.0


def test_limits_count_above_what_was_usual() -> None:
    at_limits = lived(100, (5.0, 1.0))
    assert "100% of the action components are at their limits" in (fault(at_limits, Usual(), RULES) or "")
    assert fault(at_limits, Usual(limit_share=0.8), RULES) is None


def test_jumps_count_by_the_width_that_was_usual() -> None:
    jumpy = lived(100, (-2.0, 0.5), (2.0, 0.5))
    assert "jump by more than 10% of the range" in (fault(jumpy, Usual(jump=0.01), RULES) or "")
    assert fault(jumpy, Usual(jump=0.2), RULES) is None
    rare = lived(100, *[(0.0, 0.05)] * 49, (0.0, 0.9))  # a gripper that closes now and then
    assert fault(rare, Usual(jump=0.01), RULES) is None


def test_late_steps_count_above_what_was_usual() -> None:
    conduct = lived(75, (0.0, 0.5))
    for _ in range(25):
        conduct.late()
    assert "25% of the steps missed their deadline" in (fault(conduct, Usual(), RULES) or "")
    assert fault(conduct, Usual(late_share=0.1), RULES) is None


def test_few_steps_tell_nothing_but_nan_does() -> None:
    conduct = lived(RULES.min_steps - 1, (5.0, 1.0))
    assert fault(conduct, Usual(), RULES) is None
    for _ in range(RULES.max_nonfinite):
        conduct.broken()
    assert "gave NaN" in (fault(conduct, Usual(), RULES) or "")


def test_an_action_beyond_its_limits_is_as_bad_as_nan() -> None:
    conduct = lived(50, (0.0, 0.5))
    for action in actions((5.2, 0.5), (0.0, -0.1), (-5.1, 0.5)):
        conduct.answered(action, None)
    assert conduct.broken_steps == 3 and conduct.answers == 50
    conduct.answered(np.array([5.0001, 1.0], np.float32), None)  # rounding, no fault
    assert conduct.broken_steps == 3


def test_what_left_the_window_is_forgotten() -> None:
    conduct = lived(10, (5.0, 1.0))
    for _ in range(5):
        conduct.broken()
    for _ in range(RULES.window_steps):
        conduct.answered(np.array([0.0, 0.5], np.float32), None)
    assert (conduct.broken_steps, conduct.limit_share, conduct.judged) == (0, 0.0, RULES.window_steps)


def test_a_component_that_cannot_move_tells_nothing() -> None:
    conduct = Conduct(manifest((0.0, 0.0), (0.0, 1.0)), 100)
    for _ in range(50):
        conduct.answered(np.array([0.0, 0.5], np.float32), np.array([0.0, 0.5], np.float32))
    assert conduct.usual() == Usual() and conduct.broken_steps == 0


def test_the_golden_sequence_tells_what_is_usual() -> None:
    golden_actions = np.array([[5.0, 0.5], [5.0, 0.5], [-5.0, 0.5], [-5.0, 0.5]], np.float32)
    golden = Golden(
        observation=np.zeros((4, 1), np.float32),
        previous_action=np.zeros((4, 2), np.float32),
        previous_reward=np.zeros(4, np.float32),
        is_first=np.array([1, 0, 1, 0], np.float32),
        action=golden_actions[:, None],
    )
    # The change of sign falls on the beginning of an episode and is no jump.
    assert usual_of_golden(golden, manifest()) == Usual(limit_share=0.5)
