"""Process groups: ended whole, and never one that only has the same number."""

import subprocess
import sys
from pathlib import Path

from brain_service.processes import end_group, identify, stop_child
from tests.jobs.running import gone, wait_until


def start_group() -> "tuple[subprocess.Popen[bytes], int]":
    """Start a process group of a leader that ignores SIGTERM and a member; returns the leader and the member."""
    program = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "member = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(member.pid, flush=True); time.sleep(600)"
    )
    leader = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
    assert leader.stdout is not None
    with leader.stdout:
        return leader, int(leader.stdout.readline())


def test_a_stubborn_child_goes_with_its_whole_group() -> None:
    leader, member = start_group()
    assert stop_child(leader, 0.1) == -9
    wait_until(lambda: gone(member), "the group's member to go")


def test_a_group_is_found_by_its_identity_also_without_its_leader() -> None:
    leader, member = start_group()
    identity = identify(leader.pid)
    leader.kill()
    leader.wait()
    assert not gone(member)
    assert end_group(identity)
    wait_until(lambda: gone(member), "the group's member to go")
    assert not end_group(identity)


def test_a_group_of_another_boot_or_another_start_is_left_alone() -> None:
    leader, member = start_group()
    boot, pid, ticks = identify(leader.pid).split(":")
    try:
        assert not end_group(f"{Path('/proc/sys/kernel/random/uuid').read_text().strip()}:{pid}:{ticks}")
        assert not end_group(f"{boot}:{pid}:{int(ticks) - 1}")
        assert not gone(member)
    finally:
        stop_child(leader, 0)
