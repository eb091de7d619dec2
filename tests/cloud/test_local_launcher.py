"""Trainings on this machine: they outlive their launcher, run once, and tell how they ended."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from brain_service.cloud.launchers import Capacity
from brain_service.cloud.launchers.keeper import is_held
from brain_service.cloud.launchers.local import LocalLauncher
from brain_service.errors import InvalidError, UnavailableError
from tests.cloud.launching import request, wait_for
from tests.jobs.running import gone

# Notes each start and what it was told, then waits to be told to go.
PROGRAM = """
import os, pathlib, signal, sys, time
what, folder = sys.argv[1], pathlib.Path(sys.argv[2])
with (folder / "starts").open("a") as file:
    file.write(f"{os.getpid()} {os.environ['CONTINUON_RUN_ID']} {os.environ['CONTINUON_ATTEMPT']}\\n")
def go(*_):
    (folder / "went").write_text("saved")
    sys.exit(75)
signal.signal(signal.SIGTERM, signal.SIG_IGN if what == "stubborn" else go)
if what.isdigit():
    sys.exit(int(what))
print("working", flush=True)
time.sleep(120)
"""


def launcher(folder: Path, grace_s: float = 10.0) -> LocalLauncher:
    return LocalLauncher(folder / "runs", command=(sys.executable, "-c", PROGRAM), grace_s=grace_s)


def starts(folder: Path) -> list[str]:
    path = folder / "starts"
    return path.read_text().splitlines() if path.exists() else []


def started(folder: Path) -> int:
    line: str = wait_for(lambda: next(iter(starts(folder)), None), "the start")
    return int(line.split()[0])


def ordered(folder: Path, what: str) -> None:
    """Leave what a launcher leaves that is killed before it starts the keeper."""
    place = folder / "runs" / "run-1" / "1"
    place.mkdir(parents=True)
    order = {
        "command": [sys.executable, "-c", PROGRAM, what, str(folder)],
        "environment": {"CONTINUON_RUN_ID": "run-1", "CONTINUON_ATTEMPT": "1"},
    }
    (place / "order.json").write_text(json.dumps(order))


def looked(tool: LocalLauncher, phase: str, name: str = "process:run-1/1") -> Capacity:
    def found() -> Capacity | None:
        now = tool.look(name)
        return now if now is not None and now.phase == phase else None

    capacity: Capacity = wait_for(found, phase)
    return capacity


def test_a_training_runs_is_found_and_goes_when_told(tmp_path: Path) -> None:
    tool, wanted = launcher(tmp_path), request("process", arguments=("wait", str(tmp_path)))
    made = tool.create(wanted, 1)
    assert (made.name, made.phase, made.attempt) == ("process:run-1/1", "running", 1)
    pid = started(tmp_path)
    assert starts(tmp_path) == [f"{pid} run-1 1"]
    assert [found.name for found in tool.owned()] == [made.name]
    assert os.sched_getscheduler(pid) == os.SCHED_IDLE, "at background priority"
    assert os.getsid(pid) != os.getsid(0), "in a session of its own"
    tool.stop(made.name)
    ended = looked(tool, "preempted")
    assert (ended.exit_code, (tmp_path / "went").read_text()) == (75, "saved")
    assert ended.ended_ns is not None and ended.running_since_ns is not None
    assert tool.owned() == []
    tool.stop(made.name)
    assert "working" in (tmp_path / "runs" / "run-1" / "1" / "log.txt").read_text()


def test_where_no_robot_waits_it_has_an_ordinary_share(tmp_path: Path) -> None:
    tool = LocalLauncher(tmp_path / "runs", command=(sys.executable, "-c", PROGRAM), background=False)
    name = tool.create(request("process", arguments=("wait", str(tmp_path))), 1).name
    assert os.sched_getscheduler(started(tmp_path)) == os.SCHED_OTHER
    tool.stop(name)


@pytest.mark.parametrize(("code", "phase"), [(0, "succeeded"), (1, "failed"), (75, "preempted"), (78, "failed")])
def test_the_exit_code_is_there_for_whoever_looks_later(tmp_path: Path, code: int, phase: str) -> None:
    launcher(tmp_path).create(request("process", arguments=(str(code), str(tmp_path))), 1)
    ended = looked(launcher(tmp_path), phase)
    assert ended.exit_code == code


def test_an_attempt_runs_once_however_often_it_is_started(tmp_path: Path) -> None:
    wanted = request("process", arguments=("wait", str(tmp_path)))
    tool = launcher(tmp_path)
    ordered(tmp_path, "wait")
    command = [
        sys.executable,
        "-m",
        "brain_service.cloud.launchers.keeper",
        str(tmp_path / "runs" / "run-1" / "1"),
    ]
    keepers = [subprocess.Popen(command) for _ in range(3)]
    assert [keeper.wait() for keeper in keepers] == [0, 0, 0]
    started(tmp_path)
    tool.create(wanted, 1)
    tool.stop("process:run-1/1")
    tool.create(wanted, 1)
    assert len(starts(tmp_path)) == 1
    assert [found.phase for found in tool.find("run-1")] == ["preempted"]
    tool.create(wanted, 2)
    wait_for(lambda: len(starts(tmp_path)) == 2, "the second attempt")
    assert [found.attempt for found in tool.find("run-1")] == [2, 1], "newest first"
    tool.stop("process:run-1/2")


def test_a_training_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, signal\nfrom pathlib import Path\nfrom tests.cloud.launching import request\n"
        "from tests.cloud.test_local_launcher import launcher\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "launcher(folder).create(request('process', arguments=('wait', str(folder))), 1)\n"
        "os.killpg(0, signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], start_new_session=True, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    tool = launcher(tmp_path)
    (found,) = tool.owned()
    assert (found.name, found.phase) == ("process:run-1/1", "running")
    assert not gone(started(tmp_path))
    tool.stop(found.name)
    assert looked(tool, "preempted").exit_code == 75


def test_a_stubborn_training_is_killed(tmp_path: Path) -> None:
    tool = launcher(tmp_path, grace_s=0.3)
    name = tool.create(request("process", arguments=("stubborn", str(tmp_path))), 1).name
    pid = started(tmp_path)
    wait_for(lambda: "working" in (tmp_path / "runs/run-1/1/log.txt").read_text(), "its handler")
    tool.stop(name)
    wait_for(lambda: gone(pid), "the end")
    ended = looked(tool, "preempted")
    assert ended.exit_code is None and "killed" in ended.detail


def test_a_training_whose_keeper_died_is_still_seen_and_stopped(tmp_path: Path) -> None:
    tool = launcher(tmp_path, grace_s=0.3)
    name = tool.create(request("process", arguments=("wait", str(tmp_path))), 1).name
    pid = started(tmp_path)
    place = tmp_path / "runs" / "run-1" / "1"
    keeper = int(json.loads((place / "identity.json").read_bytes())["identity"].split(":")[1])
    os.kill(keeper, signal.SIGKILL)
    wait_for(lambda: gone(keeper), "the keeper's death")
    assert is_held(place)
    assert [found.name for found in tool.owned()] == [name]
    tool.stop(name)
    wait_for(lambda: gone(pid), "the end")
    assert looked(tool, "preempted").exit_code is None


def test_an_attempt_that_was_only_ordered_is_started_by_the_next_call(tmp_path: Path) -> None:
    """As a SIGKILL between the order and the start leaves it."""
    ordered(tmp_path, "0")
    tool = launcher(tmp_path)
    assert tool.find("run-1") == []
    assert tool.look("process:run-1/1") is None
    tool.create(request("process", arguments=("0", str(tmp_path))), 1)
    looked(tool, "succeeded")
    assert len(starts(tmp_path)) == 1


def test_a_program_that_is_not_there_ends_with_its_reason(tmp_path: Path) -> None:
    tool = LocalLauncher(tmp_path / "runs", command=("/no/such/program",))
    tool.create(request("process"), 1)
    assert looked(tool, "failed").exit_code == os.EX_OSERR
    assert "/no/such/program" in (tmp_path / "runs/run-1/1/log.txt").read_text()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UnavailableError, match="cannot start"):
        launcher(tmp_path).create(request("process"), 1)
    assert launcher(tmp_path).find("run-1") == []


@pytest.mark.parametrize("name", ["run-1/1", "process:run-1", "process:/1", "process:../1", "process:run-1/x"])
def test_a_name_that_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidError, match="process:RUN/ATTEMPT"):
        launcher(tmp_path).look(name)


def test_nothing_is_there(tmp_path: Path) -> None:
    tool = launcher(tmp_path)
    assert (tool.find("run-1"), tool.owned(), tool.look("process:run-1/1")) == ([], [], None)
    tool.stop("process:run-1/1")
