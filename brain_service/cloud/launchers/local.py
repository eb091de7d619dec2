"""Trainings on this machine: a process of its own that outlives whoever started it, at background priority.

A folder an attempt, `<folder>/<run_id>/<attempt>/`, holds the order, the log, who runs it and how it ended; it is
all that a later process needs to adopt the run.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brain_service.cloud.launchers import Capacity, CapacityPhase, RunRequest
from brain_service.cloud.launchers.keeper import EXIT, IDENTITY, LOG, ORDER, is_held
from brain_service.cloud.launchers.labels import job_environment
from brain_service.cloud.run_status import EXIT_PREEMPTED
from brain_service.durable import make_directory, write_atomic
from brain_service.errors import InvalidError, UnavailableError
from brain_service.processes import signal_group

__all__ = ["LocalLauncher"]

_SCHEME = "process:"
_START_TIMEOUT_S = 60.0
_KILL_TIMEOUT_S = 5.0


class LocalLauncher:
    """Runs below one folder."""

    settle_s = 0.0

    def __init__(
        self,
        folder: Path,
        *,
        command: Sequence[str] = (sys.executable, "-m", "cloud_trainer"),
        grace_s: float = 20.0,
        background: bool = True,
    ) -> None:
        """`command` is what the run's arguments are for; it has `grace_s` seconds to save when it is told to go.

        In the `background` it only takes what others leave of the CPU and the disk.
        """
        self._folder = folder
        self._command = tuple(command)
        self._grace_s = grace_s
        self._background = background

    def find(self, run_id: str) -> list[Capacity]:
        """Return a run's attempts that were started, newest first."""
        return [found for place in self._attempts(run_id) if (found := self._capacity(place)) is not None]

    def create(self, request: RunRequest, attempt: int) -> Capacity:
        """Start the attempt, unless it was started before.

        Raises:
            UnavailableError: the folder cannot be written or no process can be started now.
        """
        place = self._folder / request.run_id / str(attempt)
        order = {
            "command": [*self._command, *request.arguments],
            "environment": job_environment(request, attempt),
            "background": self._background,
            "created_ns": time.time_ns(),
        }
        try:
            make_directory(place)
            if not (place / ORDER).exists():
                write_atomic(place / ORDER, json.dumps(order).encode())
            subprocess.run(
                [sys.executable, "-m", "brain_service.cloud.launchers.keeper", str(place)],
                check=True,
                timeout=_START_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or b""
            last = said.decode(errors="replace").strip().rpartition("\n")[2]
            raise UnavailableError(
                f"cannot start {place}: {last or error}; check free space and memory"
            ) from error
        return self._capacity(place) or Capacity(
            name=self._name(place), run_id=request.run_id, phase="running", detail="starting", attempt=attempt
        )

    def look(self, name: str) -> Capacity | None:
        """Return how the named attempt is, None where its folder is gone or it was never started."""
        return self._capacity(self._place(name))

    def stop(self, name: str) -> None:
        """Tell the training to go, and kill what is left of it after the time it has to save.

        Raises:
            UnavailableError: it is just being started, or hangs in the kernel.
        """
        place = self._place(name)
        who = _read(place / IDENTITY)
        if not is_held(place):
            return
        identity = str(who.get("identity", ""))
        if not identity:
            raise UnavailableError(f"{name} is just being started; trying again")
        for number, patience_s in ((signal.SIGTERM, self._grace_s), (signal.SIGKILL, _KILL_TIMEOUT_S)):
            signal_group(identity, number)
            give_up = time.monotonic() + patience_s
            while is_held(place):
                if time.monotonic() >= give_up:
                    break
                time.sleep(0.05)
            else:
                return
        raise UnavailableError(f"{name} does not go, even by SIGKILL; its disk or its network drive hangs")

    def owned(self) -> list[Capacity]:
        """Return the attempts that run."""
        runs = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        found = [one for run in runs for one in self.find(run.name)]
        return [one for one in found if one.phase == "running"]

    def _attempts(self, run_id: str) -> list[Path]:
        try:
            places = [place for place in (self._folder / run_id).iterdir() if place.name.isdigit()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(places, key=lambda place: int(place.name), reverse=True)

    def _name(self, place: Path) -> str:
        return f"{_SCHEME}{place.parent.name}/{place.name}"

    def _place(self, name: str) -> Path:
        run_id, _, attempt = name.removeprefix(_SCHEME).partition("/")
        if not name.startswith(_SCHEME) or not attempt.isdigit() or not run_id or run_id.startswith("."):
            raise InvalidError(f"{name!r} names no process of a run; such a name is {_SCHEME}RUN/ATTEMPT")
        return self._folder / run_id / attempt

    def _capacity(self, place: Path) -> Capacity | None:
        # The lock first: a training that ends in between has written how before it lets go.
        held = is_held(place)
        who, ended = _read(place / IDENTITY), _read(place / EXIT)
        if not held and not who:
            return None
        code = ended.get("code")
        phase, detail = _judge(held and not ended, code, place)
        return Capacity(
            name=self._name(place),
            run_id=place.parent.name,
            phase=phase,
            detail=detail,
            created_ns=_read(place / ORDER).get("created_ns"),
            running_since_ns=who.get("since_ns"),
            ended_ns=ended.get("ended_ns"),
            attempt=int(place.name),
            exit_code=code,
        )


def _judge(running: bool, code: int | None, place: Path) -> tuple[CapacityPhase, str]:
    log = place / LOG
    if running:
        return "running", f"running, log in {log}"
    if code is None:
        return "preempted", f"killed, or this machine was restarted; log in {log}"
    if code == EXIT_PREEMPTED:
        return "preempted", "told to go, and went"
    if code == 0:
        return "succeeded", "ended"
    if code < 0:
        name = signal.Signals(-code).name if -code in {int(one) for one in signal.Signals} else str(-code)
        return "preempted", f"ended by {name}; log in {log}"
    return "failed", f"ended with exit code {code}; log in {log}"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
