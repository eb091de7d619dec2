"""The processes that stand for containers: they outlive the server, and their exit codes wait for it in files."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

__all__ = ["Processes"]

# A trap, so that the shell outlives the group's SIGTERM and writes down how the program went.
_KEEP = 'trap : TERM; "$@"; echo $? > "$0"'


class Processes:
    """Process groups by key, below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[subprocess.Popen[bytes]] = []
        for name in ("logs", "exits", "bin"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name in ("docker", "gcloud", "docker-credential-gcr", "curl"):
            stand_in = folder / "bin" / name
            stand_in.write_text(
                f'#!/bin/sh\nexec "{sys.executable}" -m tests.fakes.control_plane.stand_in {name} "$@"\n'
            )
            stand_in.chmod(0o755)

    def start(self, key: str, command: list[str], env: Mapping[str, str]) -> int:
        """Start a program as the leader of a group; `python` is this interpreter. Returns the group."""
        program = [sys.executable if word == "python" else word for word in command[:1]] + command[1:]
        with (self._folder / "logs" / f"{key}.log").open("ab") as log:
            child = subprocess.Popen(
                ["/bin/sh", "-c", _KEEP, str(self._exit_file(key)), *program],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **env},
                start_new_session=True,
            )
        self._children.append(child)
        return child.pid

    def start_script(self, key: str, script: str) -> int:
        """Run a start-up script as a TPU machine would, with stand-ins for what the machine brings along."""
        path = self._folder / "bin" / f"{key}.sh"
        path.write_text(script)
        env = {
            "PATH": f"{self._folder / 'bin'}:{os.environ['PATH']}",
            "FAKE_ATTRIBUTES": str(self._folder / "exits" / f"{key}.guest"),
        }
        return self.start(key, ["/bin/bash", str(path)], env)

    def exit_code(self, key: str, group: int) -> int | None:
        """Return how the program ended, None while it runs; 137 where it was killed before it could tell."""
        for child in self._children:
            child.poll()
        try:
            return int(self._exit_file(key).read_text())
        except (FileNotFoundError, ValueError):
            return None if self.alive(group) else 137

    def guest_attribute(self, key: str) -> str | None:
        """Return what the machine's script told the metadata server."""
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / "exits" / f"{key}.guest").read_text().strip() or None
        return None

    @staticmethod
    def alive(group: int) -> bool:
        """Tell whether any process of the group lives."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                    return True
        return False

    @staticmethod
    def signal(group: int, number: int = signal.SIGTERM) -> None:
        """Send a signal to the group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)

    def _exit_file(self, key: str) -> Path:
        return self._folder / "exits" / key
