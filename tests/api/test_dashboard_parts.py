"""What the page is made of: the word for the state, the thinned curve, the event ring, the operator's pause."""

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.api.event_log import KEPT, EventRing
from brain_service.dashboard import LearningCurve, state_of
from brain_service.dashboard.curve import MAX_POINTS
from brain_service.errors import UnavailableError
from brain_service.jobs.events import EventLog
from brain_service.jobs.hold import Hold
from brain_service.jobs.job import Job, StageReport

WELL = {name: {"status": "pass", "output": "", "observed_value": 1} for name in ("disk", "capture", "inference")}
SERVING = {"state": "serving", "active_model": "a1", "backend": "jax-cpu", "sessions": 1}
CALM = {"open_episodes": 0, "recovering": False}


def job(kind: str = "train", stage: str = "train") -> Job:
    stages = (StageReport(stage, "running"),)
    return Job("j1", kind, "running", 0.5, stages, {}, None, 1, 1, None, 1, {})


def word(
    checks: dict[str, Any] | None = None,
    inference: dict[str, Any] | None = None,
    capture: dict[str, Any] | None = None,
    running: tuple[Job, ...] = (),
    acting: bool = False,
    paused: str = "",
    strained: str = "",
) -> tuple[str, str, str]:
    found = state_of(
        WELL | (checks or {}),
        SERVING | (inference or {}),
        CALM | (capture or {}),
        running,
        acting=acting,
        paused=paused,
        strained=strained,
    )
    return found.word, found.level, found.reason


def check(status: str, output: str = "why") -> dict[str, Any]:
    return {"status": status, "output": output, "observed_value": None}


def test_one_word_tells_how_it_is_the_worst_first() -> None:
    assert word()[:2] == ("Idle", "ok")
    assert word(acting=True)[0] == "Acting"
    assert word(capture={"open_episodes": 2})[0] == "Recording"
    assert word(running=(job(),))[0] == "Training"
    assert word(running=(job("export", "export"),))[0] == "Working"
    assert word(running=(job(),), paused="hot day")[0] == "Paused"
    assert word(inference={"state": "loading"})[:2] == ("Starting", "warn")
    assert word({"disk": check("fail", "full")}, acting=True) == ("Down", "bad", "disk: full")
    assert word({"memory": check("fail", "95 %")}, acting=True)[:2] == ("Degraded", "warn")
    assert word({"recording": check("warn", "lost a step")}, acting=True)[0] == "Degraded"
    assert word(strained="under-voltage", acting=True) == ("Degraded", "warn", "under-voltage")


def test_what_a_robot_does_beside_is_told_once() -> None:
    found = word(acting=True, capture={"open_episodes": 1}, running=(job(), job("pipeline")))
    assert found == ("Acting", "ok", "1 session on model a1, backend jax-cpu; recording and training too")


def test_a_new_robot_without_a_model_is_idle_and_no_warning() -> None:
    found = word({"inference": check("warn", "no model")}, {"state": "no-model", "active_model": None})
    assert found == ("Idle", "ok", "no model yet: record some episodes, then start a training")


def write(path: Path, steps: range, **more: Any) -> None:
    with EventLog(path) as log:
        for step in steps:
            log.append("metrics", step=step, steps=10_000, loss=1.0 / (step + 1), steps_per_s=5.0, **more)


def test_a_long_curve_is_thinned_evenly_and_keeps_its_ends(tmp_path: Path) -> None:
    write(tmp_path / "e", range(5000))
    curve = LearningCurve("j", tmp_path / "e")
    curve.look()
    points = curve.to_json()["points"]
    assert MAX_POINTS / 3 < len(points) <= MAX_POINTS
    assert points[0][0] == 0
    assert points[-1][0] == 4999
    gaps = {after[0] - before[0] for before, after in itertools.pairwise(points[:-1])}
    assert max(gaps) <= 2 * min(gaps)


def test_a_curve_goes_on_where_it_stopped_and_over_what_a_resumed_run_repeats(tmp_path: Path) -> None:
    curve = LearningCurve("j", tmp_path / "e")
    curve.look()
    assert curve.to_json()["points"] == []
    write(tmp_path / "e", range(10))
    curve.look()
    write(tmp_path / "e", range(6, 8), held_out_loss=0.5, held_out_step=6)
    curve.look()
    found = curve.to_json()
    assert [step for step, _ in found["points"]] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert found["held_out"] == [(6, 0.5)]
    assert found["eta_s"] > 0
    with EventLog(tmp_path / "e") as log:
        log.append("pause", paused=True, reason="82 C")
    curve.look()
    assert curve.to_json()["eta_s"] is None
    assert curve.to_json()["paused"] == "82 C"


def test_garbage_between_the_events_of_a_job_spoils_no_curve(tmp_path: Path) -> None:
    write(tmp_path / "e", range(3))
    with (tmp_path / "e").open("ab") as file:
        file.write(
            b'\xff\x00garbage\n[1]\n{"kind": "metrics", "step": "many"}\n'
            b'{"kind": "metrics", "step": 3, "loss": null}\n'
        )
    write(tmp_path / "e", range(4, 6))
    curve = LearningCurve("j", tmp_path / "e")
    curve.look()
    assert [step for step, _ in curve.to_json()["points"]] == [0, 1, 2, 4, 5]


def test_events_outlive_the_daemon_and_the_same_is_counted(tmp_path: Path) -> None:
    ring = EventRing(tmp_path / "events.jsonl")
    ring.add("model", "info", "model a serves")
    for _ in range(3):
        ring.add("machine", "warning", "under-voltage")
    for events in (ring.latest(), EventRing(tmp_path / "events.jsonl").latest()):
        assert [(event["text"], event["times"]) for event in events] == [
            ("under-voltage", 3),
            ("model a serves", 1),
        ]


def test_a_torn_line_takes_nothing_but_itself(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventRing(path).add("daemon", "info", "first")
    path.write_bytes(path.read_bytes() + b'{"seq": 2, "t_ns": 17')
    ring = EventRing(path)
    ring.add("daemon", "info", "third")
    assert [event["text"] for event in EventRing(path).latest()] == ["third", "first"]


@given(st.lists(st.text(max_size=600), max_size=30))
def test_any_text_comes_back_or_its_beginning(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        ring = EventRing(path)
        for text in texts:
            ring.add("job", "error", text.encode(errors="replace").decode())
        assert EventRing(path).latest() == ring.latest()


def test_ring_and_file_stay_small(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    ring = EventRing(path)
    for number in range(5 * KEPT):
        ring.add("job", "info", f"job {number}")
    assert len(ring.latest()) == KEPT
    assert len(path.read_bytes().splitlines()) <= 4 * KEPT + 1
    assert EventRing(path).latest() == ring.latest()


def test_a_medium_that_refuses_costs_no_event(tmp_path: Path) -> None:
    ring = EventRing(tmp_path / "missing" / "events.jsonl")
    ring.add("capture", "error", "capture is full")
    assert ring.latest()[0]["text"] == "capture is full"


def test_a_pause_outlives_the_process_and_can_be_taken_back(tmp_path: Path) -> None:
    hold, other = Hold(tmp_path / "jobs"), Hold(tmp_path / "jobs")
    assert other.reason() == ""
    before_ns = time.time_ns()
    hold.pause("the demo is on")
    assert other.reason() == "the demo is on; POST /jobs/resume goes on"
    since_ns = other.status()["since_ns"]
    assert before_ns <= since_ns <= time.time_ns()
    hold.pause("still on")
    assert other.status() == {"paused": True, "reason": "still on", "since_ns": since_ns}
    hold.resume()
    hold.resume()
    assert other.status() == {"paused": False, "reason": "", "since_ns": None}


@pytest.mark.parametrize("garbage", [b"", b"\xff", b"[]", b'{"since_ns": "x"}'])
def test_a_pause_that_cannot_be_read_still_pauses(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "paused.json").write_bytes(garbage)
    assert Hold(tmp_path).reason().startswith("paused by an operator")
    assert isinstance(Hold(tmp_path).status()["since_ns"], int)


def test_a_pause_that_cannot_be_noted_is_refused_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file")
    with pytest.raises(UnavailableError, match="cannot be noted"):
        Hold(tmp_path / "jobs").pause()
    Hold(tmp_path / "jobs").resume()
    assert [path.name for path in tmp_path.iterdir()] == ["jobs"]
