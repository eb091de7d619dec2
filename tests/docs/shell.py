"""One bash that runs a document's commands one after the other, in a network of its own if it may.

With a network of its own the daemon gets the port that documents name, and nothing outlives the shell: it is the
first process of its PID namespace. Without one, the port in the commands is replaced by a free one.
"""

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from tests.processes import free_port

__all__ = ["Done", "Shell", "ShellDiedError", "own_network"]

PORT = 8080
"""The port that documents name."""

_LOOP = """
set -o pipefail
exec 3<&0 4>&1 </dev/null
while IFS= read -r script <&3; do
  . "$script" >"$script.out" 2>"$script.err"
  echo $? >&4
done
"""

# Jobs run when the machine has nothing else to do, and beside other tests that is never. In this shell's own PID
# namespace there are no processes but its own; who may not change their class lets them wait.
_HURRY = """
while sleep 1; do
  for each in /proc/[0-9]*; do chrt --other --pid 0 "${each#/proc/}"; done
done >/dev/null 2>&1 &
"""


class ShellDiedError(Exception):
    """The shell ended, or a command took longer than it may."""


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    stdout: str
    stderr: str


@cache
def own_network() -> tuple[str, ...]:
    """Return the words that run a command in namespaces of its own, or none where that is not allowed."""
    as_root = () if os.geteuid() == 0 else ("--map-root-user",)
    words = ("unshare", *as_root, "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return ()
    tried = subprocess.run([*words, "ip", "link", "set", "lo", "up"], capture_output=True, timeout=60)
    return words if tried.returncode == 0 else ()


class Shell:
    """A bash in `folder`, with no environment but `environment`; `isolated` False keeps the machine's network."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], *, scripts: Path, isolated: bool = True
    ) -> None:
        self._scripts = scripts
        self._count = 0
        scripts.mkdir(parents=True, exist_ok=True)
        front = own_network() if isolated else ()
        self.isolated = bool(front)
        self.port = PORT if front else free_port()
        self._process = subprocess.Popen(
            [*front, "bash", "--noprofile", "--norc", "-c", _LOOP],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        if front:
            assert self.run("ip link set lo up").code == 0
            self.run(_HURRY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, text: str, timeout_s: float = 1000.0) -> Done:
        """Run a command and wait for it.

        Raises:
            ShellDiedError: it took too long, or it ended the shell.
        """
        self._count += 1
        script = self._scripts / f"{self._count:03}.sh"
        script.write_text(self.with_port(text) + "\n")
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(f"{script}\n".encode())
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise ShellDiedError(f"the shell had ended before: {text}") from error
        told = self._line(time.monotonic() + timeout_s)
        out, err = (_read(Path(f"{script}.{name}")) for name in ("out", "err"))
        if not told:
            self.close()
            raise ShellDiedError(f"not done after {timeout_s} s, or it ended the shell: {text}\n{out}{err}")
        return Done(int(told), out, err)

    def with_port(self, text: str) -> str:
        """Return the text with the port that this shell's daemon has."""
        return text if self.port == PORT else re.sub(rf"\b{PORT}\b", str(self.port), text)

    def close(self) -> None:
        """End the shell and everything that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _line(self, until_s: float) -> str:
        assert self._process.stdout is not None
        read = b""
        while not read.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until_s - time.monotonic()))
            more = os.read(self._process.stdout.fileno(), 64) if ready else b""
            if not more:
                return ""
            read += more
        return read.decode().strip()


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
