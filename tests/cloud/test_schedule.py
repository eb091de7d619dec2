"""Laws of waiting: the cap on bytes a second, quiet hours, and backoff."""

import datetime as clock
import random
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.cloud.patience import OfflineError, Patience, RetryPolicy, park_s
from brain_service.cloud.schedule import Bandwidth, QuietHours, metered
from brain_service.errors import CancelledJobError, ConfigError, UnavailableError

_times = st.times().map(lambda time: time.replace(second=0, microsecond=0))
_moments = st.datetimes(clock.datetime(2024, 1, 1), clock.datetime(2030, 1, 1))


@given(
    rate=st.floats(1.0, 1e9),
    burst=st.integers(1, 100_000),
    pieces=st.lists(st.tuples(st.integers(1, 50_000), st.floats(0, 10)), min_size=1, max_size=30),
)
def test_law_no_span_of_time_sees_more_than_the_cap_and_one_burst(
    rate: float, burst: int, pieces: list[tuple[int, float]]
) -> None:
    now = [0.0]
    bandwidth = Bandwidth(rate, burst, lambda: now[0])
    passed: list[tuple[float, int]] = []
    for size, idle_s in pieces:
        now[0] += idle_s
        now[0] += bandwidth.take(size)
        passed.append((now[0], size))
    for first in range(len(passed)):
        total = 0
        for at_s, size in passed[first:]:
            total += size
            assert total <= rate * (at_s - passed[first][0]) * (1 + 1e-6) + burst + passed[first][1] + 1e-3


@given(data=st.binary(max_size=100_000), asked=st.lists(st.integers(1, 60_000), max_size=10))
def test_law_a_metered_body_is_the_same_bytes(data: bytes, asked: list[int]) -> None:
    waits: list[float] = []
    body = metered(data, Bandwidth(1e4, 1.0, lambda: 0.0), waits.append)
    assert len(body) == len(data)
    found = b"".join(body.read(size) for size in asked)
    while piece := body.read():
        found += piece
    assert found == data
    assert list(accumulate(waits, max)) == waits, "a clock that stands still waits longer and longer"


def test_a_whole_upload_takes_as_long_as_the_cap_says() -> None:
    now = [0.0]

    def pause(wait_s: float) -> None:
        now[0] += wait_s

    body = metered(bytes(1_000_000), Bandwidth(100_000, 16_384, lambda: now[0]), pause)
    while body.read(65_536):
        pass
    assert now[0] == pytest.approx(10.0, abs=0.2)


@given(start=_times, end=_times, now=_moments)
def test_law_quiet_hours_last_until_their_end_and_no_longer(
    start: clock.time, end: clock.time, now: clock.datetime
) -> None:
    text = f"{start:%H:%M}-{end:%H:%M}"
    if start == end:
        with pytest.raises(ConfigError, match="the same"):
            QuietHours.parse(text)
        return
    quiet = QuietHours.parse(text)
    assert quiet is not None
    wait_s = quiet.wait_s(now)
    minutes = [(start.hour * 60 + start.minute), (end.hour * 60 + end.minute)]
    length_s = ((minutes[1] - minutes[0]) % 1440) * 60
    since_s = ((now - clock.datetime.combine(now.date(), start)).total_seconds()) % 86_400
    assert (wait_s > 0) == (since_s < length_s)
    if wait_s:
        assert wait_s == pytest.approx(length_s - since_s, abs=1e-3)
        then = now + clock.timedelta(seconds=wait_s)
        assert quiet.wait_s(then + clock.timedelta(milliseconds=1)) == 0
        assert quiet.wait_s(then - clock.timedelta(milliseconds=1)) > 0


def test_quiet_hours_with_a_time_zone_wait_for_the_clock_on_the_wall() -> None:
    quiet = QuietHours.parse("22:00-06:00")
    assert quiet is not None
    now = clock.datetime(2026, 11, 27, 23, 0).astimezone()
    assert quiet.wait_s(now) == 7 * 3600


@pytest.mark.parametrize("text", ["29:00-06:00", "22:60-06:00", "22:00-22:00", "night", ""])
def test_quiet_hours_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cloud\.quiet_hours"):
        QuietHours.parse(text)


@given(
    tries=st.integers(1, 8),
    base_s=st.floats(0.001, 10),
    cap_s=st.floats(0.01, 100),
    asked_s=st.one_of(st.none(), st.floats(0, 200)),
    seed=st.integers(0, 100),
)
def test_law_waits_are_bounded_jittered_and_at_least_what_the_service_asks(
    tries: int, base_s: float, cap_s: float, asked_s: float | None, seed: int
) -> None:
    slept: list[float] = []
    patience = Patience(RetryPolicy(tries, base_s, cap_s), None, slept.append, random.Random(seed))
    error = UnavailableError("away") if asked_s is None else UnavailableError("away", retry_after_s=asked_s)
    calls = 0
    with pytest.raises(OfflineError) as raised:
        while True:
            calls += 1
            before = sum(slept)
            patience.wait(error)
            waited_s = sum(slept) - before
            bound_s = min(cap_s, base_s * 2 ** (calls - 1))
            assert (asked_s or 0) - 0.11 <= waited_s <= max(asked_s or 0, bound_s) + 0.11
    assert calls <= tries
    assert calls == (1 if (asked_s or 0) > cap_s else tries)
    assert raised.value.retry_after_s >= max(30, asked_s or 0)


def test_progress_begins_the_tries_anew_and_a_stop_ends_a_wait() -> None:
    patience = Patience(RetryPolicy(2, 0.0, 1.0), None, lambda _: None)
    for _ in range(10):
        patience.wait(UnavailableError("away"))
        patience.reset()
    assert patience.waits == 10
    slept: list[float] = []
    stopping = Patience(RetryPolicy(9, 0.0, 100.0), lambda: len(slept) == 3, slept.append)
    with pytest.raises(CancelledJobError):
        stopping.wait(UnavailableError("away", retry_after_s=60.0))
    assert sum(slept) < 1


@given(attempts=st.integers(0, 10_000), seed=st.integers(0, 100))
def test_law_weeks_offline_are_asked_about_once_an_hour_at_most_and_at_least(attempts: int, seed: int) -> None:
    wait_s = park_s(attempts, random.Random(seed))
    assert 15 <= wait_s <= 3600
    assert wait_s >= 1800 or attempts < 7
