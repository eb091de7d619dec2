"""Real processes for tests and the demo: a daemon on a free port, and what its process tree costs."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import psutil


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def told_nobody(command: Sequence[str]) -> tuple[int, bytes]:
    """Run a command whose reader goes away at once; returns its exit code and what it wrote to stderr."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        return process.wait(60), said


class Daemon:
    """`brain serve` in a process of its own, driven over HTTP and by signals."""

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        env: Mapping[str, str] | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        self.data_dir = data_dir
        self._flags = flags
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = data_dir.with_name(f"{data_dir.name}.log")
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running daemon's process."""
        assert self._process is not None, "start() comes first"
        return self._process

    def start(self, *arguments: str) -> "Daemon":
        """Start it and wait until it answers `/livez`; a daemon that exits raises with its last lines."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, *self._flags, "-m", "brain_service", "serve", "--data-dir", str(self.data_dir)]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(self.port), *arguments], stdout=log, stderr=log, env=self._env
            )
        give_up = time.monotonic() + 30
        while time.monotonic() < give_up:
            if self._process.poll() is not None:
                tail = "\n".join(self.log_path.read_text().splitlines()[-15:])
                raise RuntimeError(f"the daemon exited with {self._process.returncode}:\n{tail}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/livez", timeout=1).status_code == 200:
                    return self
            time.sleep(0.05)
        raise RuntimeError(f"the daemon did not answer within 30 s; see {self.log_path}")

    def stop(self) -> int:
        """Ask it to stop (SIGTERM) and return its exit code; after 20 s it is killed."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def kill(self) -> None:
        """SIGKILL: what a crash, the OOM killer or an impatient operator does."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running_daemon(data_dir: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Daemon]:
    """Run a daemon for a block; it is stopped, whatever happened in between."""
    daemon = Daemon(data_dir, env=env).start(*arguments)
    try:
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.stop()


class MemoryMeter(threading.Thread):
    """Samples the memory of this process and all its descendants; `peak_bytes` is the largest sum seen.

    Proportional set size: a page shared by n processes counts 1/n in each, so the sum is what the machine holds.
    """

    def __init__(self, interval_s: float = 0.5) -> None:
        super().__init__(daemon=True, name="memory-meter")
        self.peak_bytes = 0
        self._interval_s = interval_s
        self._done = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        me = psutil.Process()
        while not self._done.wait(self._interval_s):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            self.peak_bytes = max(self.peak_bytes, total)

    def stop(self) -> int:
        """Stop sampling and return the peak in bytes."""
        self._done.set()
        self.join()
        return self.peak_bytes
