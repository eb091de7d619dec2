"""When the loop starts by itself: the decision's laws, and a daemon that starts one."""

import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.jobs.table import JobTable
from brain_service.jobs.triggers import Situation, decide
from brain_service.settings import LearningSettings
from tests.datasets.logs import write_log
from tests.jobs.running import wait_ended, wait_until
from tests.processes import Daemon

NOON = datetime(2026, 3, 4, 12, 0)
QUIET = Situation(
    now=NOON,
    watching_since=NOON - timedelta(days=10),
    last_run=NOON - timedelta(days=2),
    new_episodes=50,
    open_sessions=0,
    open_episodes=0,
    gate="",
    training=False,
)

situations = st.builds(
    Situation,
    now=st.just(NOON),
    watching_since=st.integers(0, 100).map(lambda hours: NOON - timedelta(hours=hours)),
    last_run=st.none() | st.integers(-50, 100).map(lambda hours: NOON - timedelta(hours=hours)),
    new_episodes=st.integers(0, 100),
    open_sessions=st.integers(0, 2),
    open_episodes=st.integers(0, 2),
    gate=st.sampled_from(["", "84 C, the limit is 75 C"]),
    training=st.booleans(),
)
learnings = st.builds(
    LearningSettings,
    after_episodes=st.none() | st.integers(1, 60),
    daily_at=st.none() | st.sampled_from(["03:00", "11:59", "12:00", "12:01"]),
    only_idle=st.booleans(),
)


@given(learnings, situations)
def test_nothing_starts_that_something_holds(learning: LearningSettings, seen: Situation) -> None:
    decision = decide(learning, seen)
    assert decision.reason
    if decision.start:
        assert learning.after_episodes is not None or learning.daily_at is not None
        assert seen.new_episodes > 0 and not seen.training and not seen.gate
        assert not (learning.only_idle and (seen.open_sessions or seen.open_episodes))


@given(learnings, situations)
def test_a_run_that_has_just_begun_is_not_followed_by_another(learning: LearningSettings, seen: Situation) -> None:
    if decide(learning, seen).start:
        begun = replace(seen, last_run=seen.now, new_episodes=0)
        assert not decide(learning, begun).start
        assert not decide(learning, replace(begun, now=seen.now + timedelta(minutes=5), new_episodes=99)).start


def test_enough_new_episodes_start_it() -> None:
    learning = LearningSettings(after_episodes=50)
    assert decide(learning, QUIET).reason == "50 new episodes"
    assert not decide(learning, replace(QUIET, new_episodes=49)).start


def test_a_time_of_day_starts_it_once_a_day() -> None:
    learning = LearningSettings(daily_at="03:00")
    assert decide(learning, QUIET).start
    ran_today = replace(QUIET, last_run=NOON.replace(hour=3, minute=1))
    assert not decide(learning, ran_today).start
    assert decide(learning, replace(ran_today, now=NOON + timedelta(days=1))).start


def test_a_time_of_day_from_before_the_start_is_not_made_up_for() -> None:
    learning = LearningSettings(daily_at="03:00")
    assert not decide(learning, replace(QUIET, watching_since=NOON - timedelta(hours=1))).start


def test_a_last_run_in_the_future_holds_nothing_for_years() -> None:
    learning = LearningSettings(daily_at="03:00")
    assert decide(learning, replace(QUIET, last_run=NOON + timedelta(days=365))).start


def test_what_holds_it_is_told_with_what_fired() -> None:
    learning = LearningSettings(after_episodes=10)
    told = decide(learning, replace(QUIET, open_sessions=1)).reason
    assert "50 new episodes" in told and "1 sessions" in told
    assert "84 C" in decide(learning, replace(QUIET, gate="84 C")).reason


@pytest.mark.long
def test_a_daemon_starts_the_loop_after_enough_episodes(tmp_path: Path) -> None:
    for number in range(3):
        write_log(tmp_path / "brain" / "episodes" / f"e{number}.jsonl", seed=number)
    env = {"BRAIN_LEARNING__AFTER_EPISODES": "3", "BRAIN_LEARNING__CHECK_INTERVAL_S": "0.2"}
    daemon = Daemon(tmp_path / "brain", env=env | {"BRAIN_LEARNING__STEPS": "1"}).start()
    table = JobTable(tmp_path / "brain" / "brain.db")
    try:
        wait_until(lambda: table.latest(("pipeline",)) is not None, "the loop to start by itself")
        # No second one, though every look finds the first still at work or just over.
        time.sleep(1.0)
        jobs = table.list().jobs
        assert [(job.kind, job.params["steps"], job.params["priority"]) for job in jobs] == [
            ("pipeline", 1, "low")
        ]
        table.cancel(jobs[0].job_id)
        wait_ended(table, jobs[0].job_id)
    finally:
        table.close()
        daemon.stop()
