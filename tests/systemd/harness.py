"""A service manager for one unit: parses the real file, runs its ExecStart, hears its notifications.

It sets what systemd sets (NOTIFY_SOCKET, WATCHDOG_USEC and its PID, LISTEN_FDS and its names), with the sockets of
the real socket unit on other addresses.
"""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

UNITS = Path(__file__).resolve().parents[2] / "systemd"

NO_SETTINGS: Mapping[str, str] = MappingProxyType({})

# Between fork and exec, as systemd does it: the sockets become 3 and up, and the variables name this very process.
_EXEC = """
import fcntl, os, sys
fds = [int(fd) for fd in sys.argv[1].split(",") if fd]
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]
for target, fd in enumerate(high, 3):
    os.dup2(fd, target, inheritable=True)
os.environ["WATCHDOG_PID"] = os.environ["LISTEN_PID"] = str(os.getpid())
os.execvp(sys.argv[2], sys.argv[2:])
"""


def read_unit(name: str) -> dict[str, list[str]]:
    """Return each directive of a unit with its values in order."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if line and line[0] not in "#[;":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def seconds(unit: Mapping[str, list[str]], key: str) -> float:
    """Return a directive in whole seconds."""
    return float(unit[key][-1])


class Supervised:
    """One run of the daemon's unit. `heard` has each message with the moment it came (monotonic clock)."""

    def __init__(self, data_dir: Path, *, watchdog_s: float | None = None, activated: bool = False) -> None:
        self.unit = read_unit("continuon-brain.service")
        self.data_dir = data_dir
        self.watchdog_s = watchdog_s or seconds(self.unit, "WatchdogSec")
        self.heard: list[tuple[float, str]] = []
        self.log_path = data_dir.with_name(f"{data_dir.name}.log")
        self._listening: list[socket.socket] = []
        self._names: list[str] = []
        self._folder = tempfile.TemporaryDirectory(prefix="notify-")  # its path must be short
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._address = str(Path(self._folder.name) / "notify")
        self._notify.bind(self._address)
        tcp = self._listen(socket.AF_INET, ("127.0.0.1", 0))
        self.port: int = tcp.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.uds = str(Path(self._folder.name) / "brain.sock")
        if activated:
            self._listen(socket.AF_UNIX, self.uds)
            self._names = read_unit("continuon-brain.socket")["FileDescriptorName"] * 2
        else:
            tcp.close()
            self._listening.clear()
        self._process: subprocess.Popen[bytes] | None = None

    def _listen(self, family: int, address: object) -> socket.socket:
        made = socket.socket(family, socket.SOCK_STREAM)
        made.bind(address)  # type: ignore[arg-type]
        made.listen()
        self._listening.append(made)
        return made

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The main process."""
        assert self._process is not None, "start() comes first"
        return self._process

    def start(self, settings: Mapping[str, str] = NO_SETTINGS) -> "Supervised":
        """Start it as the unit says, with the interpreter, the directories and the address of the tests."""
        (command,) = self.unit["ExecStart"]
        program = shlex.split(command)
        assert program[0] == "/opt/continuon-brain/current/bin/brain"
        given = dict(pair.split("=", 1) for line in self.unit["Environment"] for pair in line.split())
        given |= {"BRAIN_DATA_DIR": str(self.data_dir), "BRAIN_CACHE_DIR": os.environ["BRAIN_CACHE_DIR"]}
        if not self._names:
            given |= {"BRAIN_PORT": str(self.port), "BRAIN_UDS": self.uds}
        manager = {
            "NOTIFY_SOCKET": self._address,
            "WATCHDOG_USEC": str(int(self.watchdog_s * 1e6)),
            "LISTEN_FDS": str(len(self._names)),
            "LISTEN_FDNAMES": ":".join(self._names),
        }
        fds = [each.fileno() for each in self._listening]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c", _EXEC, ",".join(map(str, fds))),
                    *(sys.executable, "-m", "brain_service", *program[1:]),
                ],
                env={**os.environ, **given, **settings, **manager},
                pass_fds=fds,
                stdout=log,
                stderr=log,
            )
        threading.Thread(target=self._hear, daemon=True).start()
        return self

    def _hear(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                message = self._notify.recv(4096).decode()
                self.heard.append((time.monotonic(), message))

    def wait_for(self, found: Callable[[str], bool], timeout_s: float = 120.0) -> float:
        """Wait for a message and return when it came."""
        give_up = time.monotonic() + timeout_s
        while time.monotonic() < give_up:
            for moment_s, message in list(self.heard):
                if found(message):
                    return moment_s
            assert self.process.poll() is None or "STOPPING" in str(self.heard), self.log_path.read_text()
            time.sleep(0.01)
        raise AssertionError(f"heard only {self.heard}; {self.log_path.read_text()}")

    def wait_ready(self) -> float:
        """Wait for READY=1."""
        return self.wait_for(lambda message: message.startswith("READY=1\n"))

    def pings(self) -> list[float]:
        """Return when the watchdog was fed."""
        return [moment_s for moment_s, message in self.heard if message == "WATCHDOG=1"]

    def close(self) -> None:
        """End it, however it is."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
        self._notify.shutdown(socket.SHUT_RDWR)
        self._notify.close()
        for each in self._listening:
            each.close()
        self._folder.cleanup()


@contextlib.contextmanager
def supervised(
    data_dir: Path,
    settings: Mapping[str, str] = NO_SETTINGS,
    *,
    watchdog_s: float | None = None,
    activated: bool = False,
) -> Iterator[Supervised]:
    """Run the unit for a block; it is ended, whatever happened."""
    running = Supervised(data_dir, watchdog_s=watchdog_s, activated=activated)
    try:
        yield running.start(settings)
    finally:
        running.close()
