"""Raw bytes to a daemon and back: for what no well-behaved HTTP client would send."""

import json
import socket
import time
from pathlib import Path
from typing import Any

from tests.processes import Daemon

STEP = {"observation": {"state": [0.1, -0.2, 0.3]}, "action": {"command": [0.5, 0.25]}, "reward": 0.5}


def step_bytes(index: int, **changes: Any) -> bytes:
    """Return a small step as JSON."""
    return json.dumps({**STEP, "step_index": index, **changes}).encode()


def connect(daemon: Daemon, *, unix: bool = False, timeout_s: float = 10) -> socket.socket:
    """Connect to the daemon's port or Unix socket."""
    if unix:
        found = socket.socket(socket.AF_UNIX)
        found.settimeout(timeout_s)
        found.connect(str(Path(daemon.data_dir) / "brain.sock"))
        return found
    return socket.create_connection(("127.0.0.1", daemon.port), timeout=timeout_s)


def request_bytes(path: str, body: bytes = b"", method: str = "POST", **headers: str) -> bytes:
    """Return one HTTP/1.1 request; a header `content_type` becomes `content-type`."""
    lines = [f"{method} {path} HTTP/1.1", "Host: brain", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of the next answer; (0, {}, b"") where the daemon closed without one."""
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            part = b""
        if not part:
            return 0, {}, data
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(rest) < int(headers.get("content-length", 0)):
        rest += connection.recv(65536)
    return int(status_line.split(" ")[1]), headers, rest


def assert_raw_problem(answer: tuple[int, dict[str, str], bytes], status: int) -> dict[str, Any]:
    """Return the problem document of a raw answer."""
    assert answer[0] == status, answer
    assert answer[1]["content-type"] == "application/problem+json"
    problem: dict[str, Any] = json.loads(answer[2])
    assert problem["status"] == status
    return problem


def closed_after_s(connection: socket.socket) -> float:
    """Wait for the daemon to close and return how many seconds that took."""
    begun_s = time.monotonic()
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - begun_s
