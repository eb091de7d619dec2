"""Whether the robot works right now, as another process than the daemon can tell.

The daemon knows its sessions and open episodes and is asked over its Unix socket. Where none runs, no session
acts, and an episode that some other program records has a locked log. Locks are read from the kernel's list, never
tried: a lock that is held for an instant could make a starting daemon give up.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import httpx

from brain_service.settings import Settings

__all__ = ["Activity", "daemon_runs", "look_for_activity"]

LOCKS = Path("/proc/locks")
DAEMON_LOCK = ".lock"
TIMEOUT_S = 5.0
NEVER_S = float("inf")


@dataclass(frozen=True)
class Activity:
    """One look; None where it cannot be told."""

    session_idle_s: float | None
    """Seconds since any session last acted; infinite where there is none."""
    open_episodes: int | None


def look_for_activity(settings: Settings, locks: Path = LOCKS) -> Activity:
    """Ask the daemon of this data directory, or where none runs look for logs that are being written. Blocking."""
    runs = daemon_runs(settings.data_dir, locks)
    if runs is None:
        return Activity(None, None)
    return _ask(settings) if runs else Activity(NEVER_S, _locked_logs(settings.episodes_dir, locks))


def daemon_runs(data_dir: Path, locks: Path = LOCKS) -> bool | None:
    """Tell whether a daemon has the data directory, None where the kernel's list of locks cannot be read."""
    held = _held(locks)
    if held is None:
        return None
    try:
        return (data_dir / DAEMON_LOCK).stat().st_ino in held
    except FileNotFoundError:
        return False
    except OSError:
        return None


def _ask(settings: Settings) -> Activity:
    socket = settings.uds or settings.data_dir / "brain.sock"
    headers = {"Authorization": f"Bearer {token}"} if (token := _token(settings)) else {}
    transport = httpx.HTTPTransport(uds=str(socket))
    try:
        with httpx.Client(
            transport=transport, base_url="http://localhost", headers=headers, timeout=TIMEOUT_S, trust_env=False
        ) as client:
            sessions = client.get("/sessions").raise_for_status().json()["sessions"]
            episodes = client.get("/episodes", params={"state": "open"}).raise_for_status().json()["episodes"]
        return Activity(min((float(each["idle_s"]) for each in sessions), default=NEVER_S), len(episodes))
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return Activity(None, None)


def _token(settings: Settings) -> str:
    """Return a token of the daemon's own file: what runs as its user may read what it may."""
    if settings.tokens_file is None:
        return ""
    try:
        lines = settings.tokens_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    return next((words[0] for line in lines if (words := line.partition("#")[0].split())), "")


def _locked_logs(episodes_dir: Path, locks: Path) -> int | None:
    held = _held(locks)
    if held is None:
        return None
    try:
        return sum(entry.inode() in held for entry in os.scandir(episodes_dir) if entry.name.endswith(".jsonl"))
    except FileNotFoundError:
        return 0
    except OSError:
        return None


def _held(locks: Path) -> set[int] | None:
    """Return the inodes with a lock (proc_locks(5)); another device's file of that number counts too."""
    try:
        lines = locks.read_text().splitlines()
    except OSError:
        return None
    places = (word for line in lines if " FLOCK " in line for word in line.split() if word.count(":") == 2)
    return {int(place.rpartition(":")[2]) for place in places}
