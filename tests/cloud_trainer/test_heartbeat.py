"""A heartbeat that neither a busy main thread nor a bad network silences, and that shows a hang."""

import logging
import time
from pathlib import Path

import pytest

from brain_service.cloud.run_status import RunStatus
from brain_service.datasets.places import LocalPlace
from brain_service.errors import UnavailableError
from cloud_trainer.heartbeat import Heartbeat, read_status


def fresh(**changes: object) -> RunStatus:
    now_ns = time.time_ns()
    known = {"run_id": "r", "phase": "starting", "attempt": 1, "step": 0, "steps": 9}
    return RunStatus(**(known | {"started_ns": now_ns, "updated_ns": now_ns, "stepped_ns": now_ns} | changes))  # type: ignore[arg-type]


def beating(folder: Path, **how: object) -> Heartbeat:
    known = {"goodput": lambda: {"step": 1.0}, "interval_s": 0.02}
    return Heartbeat(LocalPlace(folder), fresh(), **(known | how))  # type: ignore[arg-type]


def told(folder: Path) -> RunStatus:
    found = read_status(LocalPlace(folder))
    assert found is not None
    return found


def wait_for_a_beat_after(folder: Path, moment_ns: int) -> RunStatus:
    give_up_s = time.monotonic() + 10
    while told(folder).updated_ns <= moment_ns:
        assert time.monotonic() < give_up_s, "no beat came"
        time.sleep(0.005)
    return told(folder)


def test_it_beats_while_the_run_is_busy_and_a_step_that_hangs_shows(tmp_path: Path) -> None:
    with beating(tmp_path) as beat:
        beat.update(phase="training", step=3)
        first = wait_for_a_beat_after(tmp_path, time.time_ns())
        later = wait_for_a_beat_after(tmp_path, first.updated_ns)
    assert later.updated_ns > first.updated_ns
    assert (later.step, later.stepped_ns) == (3, first.stepped_ns)
    assert later.goodput == {"step": 1.0}


def test_the_time_of_the_last_step_moves_with_the_step_alone(tmp_path: Path) -> None:
    beat = beating(tmp_path)
    begun_ns = beat.status.stepped_ns
    beat.update(loss=0.5)
    assert beat.status.stepped_ns == begun_ns
    beat.update(step=1)
    moved_ns = beat.status.stepped_ns
    assert moved_ns > begun_ns
    beat.update(step=1)
    assert beat.status.stepped_ns == moved_ns


def test_a_new_phase_is_told_at_once(tmp_path: Path) -> None:
    with beating(tmp_path, interval_s=3600.0) as beat:
        beat.update(phase="compiling")
        give_up_s = time.monotonic() + 10
        while told(tmp_path).phase != "compiling":
            assert time.monotonic() < give_up_s
            time.sleep(0.005)


def test_the_last_word_stays(tmp_path: Path) -> None:
    with beating(tmp_path) as beat:
        beat.end(phase="done", step=9, model_id="m")
        last = told(tmp_path)
        time.sleep(0.1)
    assert told(tmp_path) == last
    assert (last.phase, last.step, last.model_id) == ("done", 9, "m")


def test_a_beat_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise UnavailableError("no network")

    with caplog.at_level(logging.WARNING), beating(tmp_path, also=fail) as beat:
        give_up_s = time.monotonic() + 10
        while len(caplog.records) < 2:
            assert time.monotonic() < give_up_s
            time.sleep(0.005)
        with pytest.raises(UnavailableError, match="no network"):
            beat.end(phase="done")
        beat.last_words(phase="failed")


def test_an_output_directory_that_cannot_be_written_to_ends_the_run_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnavailableError, match="choose another output"), beating(tmp_path / "file" / "run"):
        pass


def test_other_hosts_write_nothing(tmp_path: Path) -> None:
    with Heartbeat(None, fresh(), goodput=dict, interval_s=0.01) as beat:
        beat.update(step=2)
        beat.end(phase="done")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\x00", b'{"schema": "x"}'])
def test_an_old_heartbeat_that_nobody_can_read_counts_as_none(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_bytes(data)
    assert read_status(LocalPlace(tmp_path)) is None
