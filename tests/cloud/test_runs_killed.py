"""SIGKILL at every step of a run, of real processes: one capacity at a time, one creation an attempt."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cloud.killing import Scene, forked
from tests.fakes.control_plane import ControlPlane, running_control_plane


def kill_everywhere(target: str, scenario: str, plane: ControlPlane, folder: Path, every: int = 1) -> int:
    """Return how many runs were begun, of which all but the last were killed once."""
    command = [sys.executable, "-m", "tests.cloud.killing", "--target", target, "--scenario", scenario]
    command += ["--every", str(every)]
    command += ["--url", plane.url, "--folder", str(folder / "robots")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    points: int = json.loads(done.stdout)["points"]
    return points


def paid_once(folder: Path, target: str, scenario: str, every: int) -> int:
    with running_control_plane(folder / "plane", life={"run_s": 600, "queue_s": 0, "provision_s": 0}) as plane:
        runs = kill_everywhere(target, scenario, plane, folder, every)
        report = plane.report()
    assert report["max_live"] == 1
    assert report["live"] == 0
    assert sum(report["creations"].values()) == runs * (2 if scenario == "retry" else 1)
    return runs


@pytest.mark.long
@pytest.mark.parametrize(("target", "scenario"), [("vertex", "begin"), ("queued_resource", "retry")])
def test_a_kill_at_any_fourth_step_pays_for_nothing_twice(tmp_path: Path, target: str, scenario: str) -> None:
    assert paid_once(tmp_path, target, scenario, every=4) >= 4


@pytest.mark.soak
@pytest.mark.parametrize("scenario", ["begin", "retry"])
@pytest.mark.parametrize("target", ["vertex", "queued_resource"])
def test_a_kill_at_any_step_pays_for_nothing_twice(tmp_path: Path, target: str, scenario: str) -> None:
    assert paid_once(tmp_path, target, scenario, every=1) > 12, "before and after each of at least six steps"


@pytest.mark.long
def test_a_kill_at_any_third_step_starts_one_process(tmp_path: Path) -> None:
    with running_control_plane(tmp_path / "plane") as plane:
        assert kill_everywhere("process", "begin", plane, tmp_path, every=3) >= 3


def scene(plane: ControlPlane, folder: Path, target: str = "vertex", settle_s: float = 2.0) -> Scene:
    return Scene(target, plane.url, folder / "robot", "run-1", settle_s)


def created(plane: ControlPlane) -> int:
    return sum(plane.report()["creations"].values())


def test_a_request_that_arrives_after_its_sender_died_is_waited_for(tmp_path: Path) -> None:
    """The service does it a second later; the next process must not find nothing and ask again."""
    slow = {"kind": "slow", "s": 1.0, "method": "POST", "path": "customJobs"}
    with running_control_plane(tmp_path / "plane", life={"run_s": 600}, faults=[slow]) as plane:
        here = scene(plane, tmp_path)
        child = os.fork()
        if child == 0:
            here.go_on(lambda view: view.state == "running")
            os._exit(0)
        time.sleep(0.7)
        assert created(plane) == 0, "it is on its way"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert forked(lambda: here.go_on(lambda view: view.state == "running"))
        assert (created(plane), plane.report()["max_live"]) == (1, 1)
        assert forked(here.finish)


@pytest.mark.parametrize("target", ["vertex", "queued_resource"])
@pytest.mark.parametrize(
    "script",
    [
        {"faults": [{"kind": "drop_after", "method": "POST", "path": "projects", "times": 1}]},
        {"faults": [{"kind": "drop_before", "method": "POST", "path": "projects", "times": 1}]},
        {"faults": [{"kind": "garbage", "method": "POST", "path": "projects", "times": 1}]},
        {"faults": [{"kind": "unavailable", "method": "POST", "path": "projects", "times": 1}]},
        {"faults": [{"kind": "drop_after", "method": "POST", "path": "projects"}], "list_lag_s": 0.8},
    ],
)
def test_an_answer_that_was_lost_is_found_out_about(tmp_path: Path, target: str, script: dict[str, Any]) -> None:
    with running_control_plane(tmp_path / "plane", life={"run_s": 600}, **script) as plane:
        here = scene(plane, tmp_path, target, settle_s=1.2)
        assert forked(lambda: here.go_on(lambda view: view.state == "running"))
        assert (created(plane), plane.report()["max_live"]) == (1, 1)
        assert forked(here.finish)


def test_a_service_that_is_itself_restarted_loses_nothing(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path / "plane").start()
    try:
        plane.script(life={"run_s": 600})
        here = scene(plane, tmp_path, "queued_resource")
        assert forked(lambda: here.go_on(lambda view: view.state == "running"))
        plane.kill()
        plane.start()
        assert forked(lambda: here.go_on(lambda view: view.state == "running" and view.attempt == 1))
        assert created(plane) == 1
        assert forked(here.finish)
    finally:
        plane.stop()
