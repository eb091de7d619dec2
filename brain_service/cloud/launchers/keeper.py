"""The process that starts a training on this machine, waits for it and writes down how it ended.

`python -m brain_service.cloud.launchers.keeper FOLDER` returns once the training's keeper stands on its own: in a
session of its own, so that it outlives whoever launched it. A lock on `FOLDER/lock` is held by keeper and training
together for as long as either lives; whoever finds it free and no `exit.json` knows that both were killed. The
training runs once a folder, however often it is started.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from brain_service.durable import write_atomic
from brain_service.processes import become_background, identify
from brain_service.settings import child_environment

__all__ = ["EXIT", "IDENTITY", "LOCK", "LOG", "ORDER", "is_held", "keep"]

ORDER = "order.json"
LOCK = "lock"
IDENTITY = "identity.json"
EXIT = "exit.json"
LOG = "log.txt"
# A look at the lock holds it for microseconds; whoever holds it longer runs.
_TRIES = 20
_PAUSE_S = 0.02


def is_held(folder: Path) -> bool:
    """Tell whether a keeper or its training lives."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def keep(folder: Path) -> None:
    """Start the folder's training, unless it was started before; returns when a keeper of its own waits for it.

    Raises:
        OSError: the folder cannot be written, or no process can be made.
        ValueError: the order is no JSON.
    """
    order = json.loads((folder / ORDER).read_bytes())
    with (folder / LOCK).open("ab") as lock:
        if not _locked(lock) or (folder / IDENTITY).exists():
            return
        ready, telling = os.pipe()
        if os.fork():
            # The lock is the child's too; who it is stands written once it lets go of the pipe.
            os.close(telling)
            os.read(ready, 1)
            os.close(ready)
            return
        try:
            os.close(ready)
            _introduce(folder)
            os.close(telling)
            _run(folder, order, lock)
        except BaseException as error:  # noqa: BLE001 - what a forked child lets through runs its parent's code
            with contextlib.suppress(OSError), (folder / LOG).open("a") as log:
                log.write(f"keeper: {error}\n")
            os._exit(os.EX_OSERR)
        os._exit(os.EX_OK)


def _locked(lock: IO[bytes]) -> bool:
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_PAUSE_S)
    return False


def _introduce(folder: Path) -> None:
    """Become a session of its own, and write down which."""
    os.setsid()
    # The group's SIGTERM is for the training. A handler, not SIG_IGN: that would be inherited.
    signal.signal(signal.SIGTERM, lambda *_: None)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    identity = {"identity": identify(os.getpid()), "since_ns": time.time_ns()}
    write_atomic(folder / IDENTITY, json.dumps(identity).encode())


def _run(folder: Path, order: dict[str, Any], lock: IO[bytes]) -> None:
    """Run the training, and write down how it ended."""
    if order.get("background", True):
        become_background()
    with (folder / LOG).open("ab") as log:
        try:
            child = subprocess.Popen(
                order["command"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock.fileno()],
                env=child_environment(order["environment"]),
            )
            code = child.wait()
        except OSError as error:
            log.write(f"cannot start {order['command'][0]}: {error}\n".encode())
            code = os.EX_OSERR
    ended = {"code": code, "ended_ns": time.time_ns()}
    write_atomic(folder / EXIT, json.dumps(ended).encode())


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
