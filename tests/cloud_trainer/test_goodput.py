"""The buckets add up to the time that passed, whatever happens in it."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.training.phases import PhaseClock
from cloud_trainer.goodput import BUCKETS, Goodput, process_age_s

PHASES = st.sampled_from(["start", "compile", "input", "step", "checkpoint", "finish"])


class Time:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@given(st.lists(st.tuples(st.booleans(), PHASES, st.floats(0, 1e4)), max_size=40))
def test_phases_add_up_to_the_time_that_passed(told: list[tuple[bool, str, float]]) -> None:
    now = Time()
    clock = PhaseClock("start", now)
    for begins, phase, seconds in told:
        (clock.begin if begins else clock.was)(phase)
        now.now_s += seconds
    assert sum(clock.seconds().values()) == pytest.approx(now.now_s - 100.0)


def test_what_ran_may_turn_out_to_be_another_phase() -> None:
    now = Time()
    clock = PhaseClock("start", now)
    clock.begin("input")
    now.now_s += 3
    clock.was("step")
    clock.begin("step")
    now.now_s += 4
    assert clock.seconds() == {"start": 0, "step": 7}


def test_steps_that_were_made_before_are_lost_until_the_run_is_where_it_was() -> None:
    goodput = Goodput(known_step=5)
    told: dict[int, str] = {}
    for step in range(3, 8):
        goodput.made(step)
        goodput.begin("step")
        before = goodput.buckets()
        time.sleep(0.005)
        after = goodput.buckets()
        told[step] = max(BUCKETS, key=lambda bucket: after[bucket] - before[bucket])
    assert told == {3: "lost", 4: "lost", 5: "step", 6: "step", 7: "step"}


def test_an_attempt_goes_on_from_what_earlier_ones_spent() -> None:
    goodput = Goodput(before={"step": 50.0, "start": 2.0}, down_s=30.0, age_s=4.0)
    found = goodput.buckets()
    assert (found["step"], found["down"]) == (50.0, 30.0)
    assert found["start"] == pytest.approx(6.0, abs=1.0)
    assert set(found) == set(BUCKETS)


def test_a_checkpoint_is_told() -> None:
    goodput, told = Goodput(), []
    goodput.on_checkpoint = lambda: told.append(True)
    for phase in ("step", "checkpoint", "step"):
        goodput.begin(phase)
    assert told == [True]


def test_the_age_of_the_process_is_known() -> None:
    before_s = process_age_s()
    time.sleep(0.05)
    assert before_s + 0.04 <= process_age_s() < before_s + 60
