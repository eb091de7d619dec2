"""Linux process facts for whoever starts processes: background priority, dying with a parent, ending a group."""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import time
from pathlib import Path

import psutil

__all__ = [
    "become_background",
    "boot_id",
    "die_with_parent",
    "end_group",
    "identify",
    "signal_group",
    "stop_child",
]

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def become_background() -> None:
    """Leave the CPU and the disk to whoever wants them: SCHED_IDLE and the idle I/O class, for good.

    Call it before threads start: each thread inherits the policy of the one that made it.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # A kernel or sandbox without I/O priorities loses only this courtesy.
    with contextlib.suppress(OSError, psutil.Error):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel SIGKILL this process when its parent goes, even by SIGKILL; exit if it has gone already.

    The kernel watches the thread that made this process, which must not end before it does.

    Raises:
        OSError: the kernel refuses the request.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os._exit(os.EX_TEMPFAIL)


def boot_id() -> str:
    """Return what the kernel calls this boot; another one after every restart of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_ticks(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name, in parentheses, may hold spaces: count the fields after it (proc(5), field 22).
    return stat.rpartition(")")[2].split()[19]


def identify(pid: int) -> str:
    """Return a name for the process group led by `pid` that no later process can take over, reboot included."""
    return f"{boot_id()}:{pid}:{_start_ticks(pid)}"


def signal_group(identity: str, number: int) -> bool:
    """Send a signal to what is left of a group named by `identify`; True if anything was.

    A group of an earlier boot, or one whose leader's number went to another process, is left alone.
    """
    boot, leader, ticks = identity.split(":")
    group = int(leader)
    found = _start_ticks(group)
    # While a member lives, the kernel gives the group's number to no new process: a leader that is gone with
    # members left is still this group.
    if boot != boot_id() or (found is not None and found != ticks):
        return False
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def end_group(identity: str, timeout_s: float = 5.0) -> bool:
    """SIGKILL what is left of a group named by `identify` and wait until it is gone; True if anything was."""
    if not signal_group(identity, signal.SIGKILL):
        return False
    group = int(identity.split(":")[1])
    give_up = time.monotonic() + timeout_s
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < give_up:
            os.killpg(group, 0)
            time.sleep(0.01)
    return True


def stop_child(child: "subprocess.Popen[bytes]", grace_s: float) -> int:
    """End a child that leads a process group: SIGTERM, then SIGKILL for the group; returns its exit code.

    It has `grace_s` seconds to go by itself. The child is reaped last, so that the group's number stays its own.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(child.pid)
        try:
            select.select([pidfd], [], [], grace_s)
        finally:
            os.close(pidfd)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    return child.wait()
