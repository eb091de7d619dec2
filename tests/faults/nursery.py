"""A process that has loaded the daemon's code and forks daemons from it, so that a kill run costs no imports.

Reads a JSON line `{"arguments": [...], "log": path}` from its standard input for each daemon, answers its process
id, and ends with its input. Every daemon is a whole `brain serve` in a process of its own.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["Nursery"]


class Nursery:
    """Starts daemons and kills them; `close` ends the process that they are forked from, not the daemons."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, arguments: Sequence[str], log: Path) -> int:
        """Fork a daemon with these command line arguments and return its process id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"arguments": list(arguments), "log": str(log)}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    @staticmethod
    def kill(pid: int) -> None:
        """SIGKILL, and wait until the process is gone with its locks and sockets."""
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.001)

    def close(self) -> None:
        """End the process; harmless twice."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _become(order: dict[str, Any]) -> None:
    """Run the daemon in this forked process; never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for place, fd in enumerate((nothing, log, log)):
        os.dup2(fd, place)
    from brain_service.cli import main

    os._exit(main(order["arguments"]))


def _serve() -> None:
    import brain_service.api.serve  # noqa: F401  (what a daemon needs most of its start for)

    # Dead children vanish at once, so that whoever killed them sees it.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _become(json.loads(line))
        print(pid, flush=True)


if __name__ == "__main__":
    _serve()
