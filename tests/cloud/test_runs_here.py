"""Runs on this machine: the same states and ends as in the cloud, for nothing."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from brain_service.cloud.launchers.keeper import IDENTITY
from brain_service.cloud.launchers.local import LocalLauncher
from brain_service.cloud.runs import CloudRuns, RunView
from tests.cloud.killing import SLEEPER
from tests.cloud.launching import cloud_settings, heartbeat, request

COMMAND = (sys.executable, "-c", SLEEPER)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    tool = LocalLauncher(tmp_path / "launches", grace_s=2)
    for left in tool.owned():
        tool.stop(left.name)


def opened(folder: Path) -> CloudRuns:
    """The robot's runs as after a start; no project is set, so that nothing can go to the cloud."""
    settings = cloud_settings("http://127.0.0.1:1", project=None)
    tool = LocalLauncher(folder / "launches", command=COMMAND, grace_s=10)
    return CloudRuns(folder / "brain.db", settings, {"process": tool})


def until(runs: CloudRuns, found: Callable[[RunView], bool]) -> RunView:
    give_up = time.monotonic() + 30
    while not found(view := runs.advance("run-1")):
        assert time.monotonic() < give_up, view
        time.sleep(0.05)
    return view


def test_a_run_here_is_taken_up_after_a_kill_and_ends_as_its_heartbeat_says(here: Path) -> None:
    runs = opened(here)
    runs.begin(request("process", output_dir=str(here / "out")))
    until(runs, lambda view: view.state == "running")
    heartbeat(here / "out", step=4)
    until(runs, lambda view: view.status is not None)
    who = json.loads((here / "launches" / "run-1" / "1" / IDENTITY).read_bytes())["identity"]
    os.killpg(int(who.split(":")[1]), signal.SIGKILL)
    second = until(runs, lambda view: view.attempt == 2 and view.state == "running")
    assert second.capacity == "process:run-1/2"
    runs.close()
    runs = opened(here)
    assert runs.advance("run-1").capacity == second.capacity, "adopted"
    heartbeat(here / "out", phase="done", attempt=2, step=10, model_id="m")
    done = until(runs, lambda view: view.state == "done")
    assert done.status is not None and (done.status.model_id, done.cost_usd, done.bills) == ("m", 0.0, False)
    assert LocalLauncher(here / "launches").owned() == []
    runs.close()


def test_a_run_here_is_stopped_and_what_nobody_knows_is_reaped(here: Path) -> None:
    runs = opened(here)
    for run_id in ("run-1", "run-2"):
        runs.begin(request("process", run_id, output_dir=str(here / "out")))
        runs.advance(run_id)
    assert runs.stop("run-1").state == "stopped"
    assert [found.run_id for found in LocalLauncher(here / "launches").owned()] == ["run-2"]
    assert runs.reap() == []
    runs.close()
    for path in here.glob("brain.db*"):
        path.unlink()
    runs = opened(here)
    assert runs.reap() == ["process:run-2/1"]
    assert LocalLauncher(here / "launches").owned() == []
    runs.close()
