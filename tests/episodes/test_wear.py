"""The wear meter: days, the pace of the last hour, saving in parts, and clocks that jump."""

import threading
import time
from contextlib import closing
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from brain_service.episodes.store import EpisodeStore
from brain_service.episodes.wear import WearMeter
from brain_service.settings import CaptureSettings
from tests.episodes.bodies import begin

NOON = 1_795_348_800.0  # 2026-11-22T12:00:00Z
DAY = 86_400


class Clock:
    def __init__(self, now_s: float = NOON) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def test_a_day_ends_at_midnight_utc() -> None:
    clock = Clock(NOON + 12 * 3600 - 1)
    meter = WearMeter(clock, clock)
    meter.add(100)
    assert meter.bytes_today == 100
    clock.now_s += 2
    assert meter.bytes_today == 0
    meter.add(7)
    assert meter.bytes_today == 7
    assert meter.take_unsaved() == {"2026-11-22": 100, "2026-11-23": 7}


def test_the_pace_is_that_of_the_last_hour() -> None:
    clock = Clock()
    meter = WearMeter(clock, clock)
    for _ in range(3 * 3600):
        meter.add(1000)
        clock.now_s += 1
        if clock.now_s % 60 == 30:
            meter.take_unsaved()
    assert abs(meter.bytes_per_day / (1000 * DAY) - 1) < 0.02
    clock.now_s += 1800
    assert abs(meter.bytes_per_day / (500 * DAY) - 1) < 0.05
    clock.now_s += 3600
    assert meter.bytes_per_day == 0


def test_the_pace_of_a_young_meter_is_no_wild_guess() -> None:
    clock = Clock()
    meter = WearMeter(clock, clock)
    meter.add(60)
    assert meter.bytes_per_day == DAY  # a whole minute at least
    clock.now_s += 600
    assert meter.bytes_per_day == DAY // 10


def test_earlier_runs_count_and_what_could_not_be_saved_comes_again() -> None:
    meter = WearMeter(Clock(), Clock())
    meter.restore({"2026-11-22": 1000, "2026-11-21": 5})
    meter.add(1)
    assert meter.bytes_today == 1001
    taken = meter.take_unsaved()
    assert taken == {"2026-11-22": 1}
    meter.give_back(taken)
    meter.add(2)
    assert meter.take_unsaved() == {"2026-11-22": 3}
    assert meter.take_unsaved() == {}
    assert meter.bytes_today == 1003


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(-10 * DAY, 10 * DAY)), max_size=50))
def test_no_clock_jump_loses_or_doubles_a_byte(events: list[tuple[int, int]]) -> None:
    wall, monotonic = Clock(), Clock(0.0)
    meter = WearMeter(wall, monotonic)
    for size_bytes, jump_s in events:
        meter.add(size_bytes)
        wall.now_s += jump_s
        monotonic.now_s += abs(jump_s) / DAY
        assert meter.bytes_per_day >= 0
    assert sum(meter.take_unsaved().values()) == sum(size for size, _ in events)


def test_threads_lose_nothing() -> None:
    meter = WearMeter()

    def write() -> None:
        for _ in range(20_000):
            meter.add(1)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(meter.take_unsaved().values()) == 80_000


def test_the_store_counts_what_it_writes_and_remembers_the_day(tmp_path: Path) -> None:
    def opened() -> EpisodeStore:
        store = EpisodeStore(
            tmp_path / "episodes", CaptureSettings(min_free_bytes=0), database=tmp_path / "brain.db"
        )
        store.start()
        return store

    with closing(opened()) as store:
        episode = begin(store, 20)
        store.end(episode)
        size_bytes = (tmp_path / "episodes" / f"{episode}.jsonl").stat().st_size
        assert store.status()["wear"]["bytes_today"] == size_bytes
        assert store.status()["wear"]["bytes_per_day"] > 0
    with closing(opened()) as store:
        give_up = time.monotonic() + 10
        while store.status()["wear"]["bytes_today"] != size_bytes:
            assert time.monotonic() < give_up, store.status()["wear"]
            time.sleep(0.01)
    with closing(opened()) as store:
        time.sleep(0.2)
        assert store.status()["wear"]["bytes_today"] == size_bytes
