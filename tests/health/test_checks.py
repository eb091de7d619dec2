"""Health checks: each state of a part becomes the right status, and what is not well names its fix."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.health.check import Check, overall
from brain_service.health.checks import (
    capture_check,
    disk_check,
    episodes_check,
    inference_check,
    jobs_check,
    lost_history,
    memory_check,
    recording_check,
    wear_check,
)

CAPTURE: dict[str, Any] = {"unsynced_s": 0.05, "last_error": None, "recoveries": []}
EPISODES: dict[str, Any] = {
    "open_episodes": 1,
    "catalogue": {"total": 7, "unconverted": 2, "oldest_unconverted_ns": 1_795_348_800 * 10**9},
    "damaged": {},
    "index_problem": None,
    "retention": {"deleted_episodes": 0, "deleted_bytes": 0, "blocked": None},
    "failed_tasks": {},
}
INFERENCE: dict[str, Any] = {
    "ready": True,
    "state": "serving",
    "active_model": "m1",
    "backend": "cpu",
    "error": "",
    "warnings": [],
    "why": [
        {"device": "hailo", "backend": "hailo", "used": False, "reason": "no /dev/hailo0"},
        {"device": "cpu", "backend": "cpu", "used": True, "reason": "first in order that passed"},
    ],
    "total_us": {"p50": 300.0, "p99": 900.0, "count": 10},
}


@given(st.lists(st.sampled_from(["pass", "warn", "fail"])))
def test_the_whole_is_as_bad_as_its_worst_part(statuses: list[Any]) -> None:
    checks = {str(n): Check(status, None, "") for n, status in enumerate(statuses)}
    order = ["pass", "warn", "fail"]
    assert overall(checks) == max(statuses, key=order.index, default="pass")


def test_disk_warns_before_it_fails(tmp_path: Path) -> None:
    free = disk_check(tmp_path, 0).observed_value
    assert isinstance(free, int)
    assert free > 0
    assert disk_check(tmp_path, 1).status == "pass"
    assert disk_check(tmp_path, free // 2).status == "warn"
    full = disk_check(tmp_path, free * 2)
    assert full.status == "fail"
    assert "refused" in full.output


def test_memory_is_a_percentage() -> None:
    check = memory_check()
    assert isinstance(check.observed_value, float)
    assert 0 < check.observed_value <= 100


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({}, "pass", ""),
        ({"unsynced_s": 5.0}, "fail", "SD card"),
        ({"last_error": "no space left on the medium"}, "fail", "no space"),
        ({"recoveries": [{"bytes_cut": 12}]}, "warn", "cut"),
        ({"recoveries": [{"bytes_cut": 0}]}, "pass", ""),
    ],
)
def test_capture(changes: dict[str, Any], status: str, word: str) -> None:
    check = capture_check({**CAPTURE, **changes}, sync_interval_s=0.2)
    assert check.status == status
    assert word in check.output


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({}, "pass", "m1"),
        ({"state": "no-model", "ready": False}, "warn", "POST /pipeline"),
        ({"state": "failed", "ready": False, "error": "params.safetensors: wrong hash"}, "fail", "wrong hash"),
        ({"state": "loading", "ready": False}, "warn", "loading"),
        ({"state": "restarting", "ready": False}, "warn", "restarting"),
        ({"warnings": ["control period 20 ms is off"]}, "warn", "control period"),
        ({"safe_mode": "m0 stands in for m1: 3 crashes at start"}, "warn", "safe mode: m0 stands in"),
        ({"rollbacks": [{"model_id": "m2", "evidence": "NaN"}]}, "warn", "m2 was rolled back: NaN"),
        ({"probation": {"model_id": "m1", "evidence": None, "outcome": None}}, "pass", "m1"),
        ({"probation": {"model_id": "m1", "evidence": "NaN", "outcome": None}}, "warn", "under way"),
    ],
)
def test_inference(changes: dict[str, Any], status: str, word: str) -> None:
    check = inference_check({**INFERENCE, **changes})
    assert check.status == status
    assert word in check.output


def test_inference_tells_which_backends_are_not_used_and_why() -> None:
    assert inference_check(INFERENCE).output == "model m1 on cpu; hailo: no /dev/hailo0"


RUNNER: dict[str, Any] = {"settled": True, "restarts": 0, "last_exit": None, "last_reason": ""}


def test_jobs_tell_why_they_do_not_run() -> None:
    assert jobs_check(RUNNER).status == "pass"
    assert jobs_check({**RUNNER, "restarts": 3}).status == "pass", "what is mended is well"
    dead = jobs_check({"settled": False, "restarts": 3, "last_exit": 1, "last_reason": "jobs is no directory"})
    assert (dead.status, dead.observed_value) == ("warn", 3)
    assert "jobs is no directory" in dead.output
    refused = jobs_check(RUNNER, "cannot open brain.db")
    assert refused.status == "warn"
    assert "cannot open brain.db" in refused.output


def test_a_history_of_jobs_that_was_lost_is_told_until_the_next_start(tmp_path: Path) -> None:
    assert lost_history(tmp_path / "brain.db", 0) == ""
    (tmp_path / "brain.db.damaged-1000").write_bytes(b"")
    (tmp_path / "brain.db.damaged-1000-wal").write_bytes(b"")
    assert "is now brain.db.damaged-1000:" in lost_history(tmp_path / "brain.db", 1000)
    assert lost_history(tmp_path / "brain.db", 1001) == ""


def test_a_disk_that_is_gone_fails_with_the_reason(tmp_path: Path) -> None:
    gone = disk_check(tmp_path / "gone", 1)
    assert (gone.status, gone.observed_value) == ("fail", None)
    assert "No such file" in gone.output


def test_recording_warns_of_what_the_policy_did_and_nobody_will_see() -> None:
    assert recording_check(0, "").status == "pass"
    lost = recording_check(2, "episode 'x' has ended")
    assert (lost.status, lost.observed_value) == ("warn", 2)
    assert "has ended" in lost.output


def test_episodes_are_counted_and_what_is_wrong_with_them_is_said() -> None:
    well = episodes_check(EPISODES)
    assert (well.status, well.observed_value) == ("pass", 7)
    assert well.output == "1 open, 2 that no dataset holds, the oldest from 2026-11-22"
    assert episodes_check({**EPISODES, "catalogue": {}}).status == "pass"
    for change, word in (
        (
            {"damaged": {"e": "the index fails its checksum"}},
            "1 damaged or unreadable: e (the index fails its checksum)",
        ),
        ({"index_problem": "brain.db is read-only"}, "read-only"),
        ({"retention": {"blocked": "3 episodes stay"}}, "3 episodes stay"),
        ({"failed_tasks": {"compression": "the disk is full"}}, "compression: the disk is full"),
    ):
        ill = episodes_check({**EPISODES, **change})
        assert (ill.status, ill.observed_value) == ("warn", 7)
        assert word in ill.output


def test_wear_warns_when_the_card_will_not_last() -> None:
    assert wear_check({"bytes_per_day": 5e9, "bytes_today": 1e9}).observed_value == 5000.0
    fast = wear_check({"bytes_per_day": 40e9, "bytes_today": 1e9})
    assert fast.status == "warn"
    assert "15 TB a year" in fast.output
