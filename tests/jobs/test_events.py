"""Events: appended whole, read from any offset, never lost to a torn line."""

import os
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from brain_service.jobs.events import EventLog, read_events


def test_events_come_back_in_order_with_offsets_to_go_on_from(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as events:
        for number in range(5):
            events.append("progress", progress=number / 4)
    found = read_events(path)
    assert [event.data["progress"] for event in found] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert all(event.data["kind"] == "progress" and event.data["t_ns"] > 0 for event in found)
    assert read_events(path, found[2].offset) == found[3:]
    assert read_events(path, found[-1].offset) == []


def test_a_job_that_has_not_begun_has_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "missing.jsonl") == []


@given(cut=st.integers(min_value=0, max_value=400))
def test_a_kill_within_a_write_costs_that_event_alone(tmp_path_factory: object, cut: int) -> None:
    path = Path(os.path.realpath(tmp_path_factory.mktemp("events"))) / "e.jsonl"  # type: ignore[attr-defined]
    with EventLog(path) as events:
        for number in range(5):
            events.append("metrics", number=number)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    before = [event.data["number"] for event in read_events(path)]
    assert before == list(range(whole[:cut].count(b"\n")))
    with EventLog(path) as events:
        events.append("metrics", number=99)
    *kept, last = (event.data["number"] for event in read_events(path))
    # A line that lacked nothing but its end is whole again.
    assert last == 99
    assert kept == list(range(len(kept)))
    assert len(kept) in (len(before), len(before) + 1)


def test_writers_side_by_side_spoil_no_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    def work(name: int) -> None:
        with EventLog(path) as events:
            for number in range(200):
                events.append("log", message=f"{name}-{number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({event.data["message"] for event in read_events(path)}) == 800


def test_a_large_log_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as events:
        for number in range(4):
            events.append("log", message=f"{number}" * 700_000)
    found: list[str] = []
    offset, calls = 0, 0
    while piece := read_events(path, offset):
        found += [event.data["message"][0] for event in piece]
        offset, calls = piece[-1].offset, calls + 1
    assert found == ["0", "1", "2", "3"]
    assert calls > 1
