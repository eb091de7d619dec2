"""Rude WebSockets: handshakes that no parser takes, messages that never end. Raw sockets, a real daemon."""

import base64
import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.api.wire import assert_raw_problem, closed_after_s, connect, read_answer, request_bytes, step_bytes
from tests.processes import Daemon, running_daemon

MAX_CONNECTIONS = 24
MIB = 1024**2
LIMITS = {
    "BRAIN_HTTP__MAX_CONNECTIONS": str(MAX_CONNECTIONS),
    "BRAIN_HTTP__HEADER_TIMEOUT_S": "1.5",
    "BRAIN_HTTP__BODY_TIMEOUT_S": "1.5",
    "BRAIN_CAPTURE__MAX_QUEUED_BYTES": str(32 * MIB),
}


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with short patience, few places and little room."""
    with running_daemon(tmp_path_factory.mktemp("websockets") / "brain", env=LIMITS) as running:
        yield running


def handshake(path: str, *lines: str) -> bytes:
    """Return the head of a WebSocket handshake, with more header lines if any."""
    key = base64.b64encode(os.urandom(16)).decode()
    head = [f"GET {path} HTTP/1.1", "Host: brain", "Upgrade: websocket", "Connection: Upgrade"]
    head += ["Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n"


def frame(payload: bytes, *, opcode: int = 1, fin: bool = True, size_bytes: int | None = None) -> bytes:
    """Return a masked frame (RFC 6455, section 5.2); `size_bytes` may announce more than `payload`."""
    size_bytes = len(payload) if size_bytes is None else size_bytes
    return struct.pack("!BBQ4x", (0x80 if fin else 0) | opcode, 0x80 | 127, size_bytes) + payload


@contextlib.contextmanager
def stream(daemon: Daemon, episode_id: str) -> Iterator[socket.socket]:
    """Open a stream by hand."""
    with connect(daemon) as connection:
        connection.sendall(handshake(f"/episodes/{episode_id}/stream"))
        assert read_answer(connection)[0] == 101
        yield connection


def close_code(connection: socket.socket) -> int:
    """Read until the daemon's close frame and return its code; 1006 where the connection just ends."""
    data = b""
    with contextlib.suppress(OSError):
        while True:
            while len(data) >= 2 and len(data) >= 2 + (data[1] & 127):
                if data[0] & 15 == 8:
                    return int.from_bytes(data[2:4], "big")
                data = data[2 + (data[1] & 127) :]
            part = connection.recv(65536)
            if not part:
                break
            data += part
    return 1006


def new_episode(daemon: Daemon) -> str:
    episode_id: str = httpx.post(f"{daemon.url}/episodes", json={}).json()["episode_id"]
    return episode_id


@pytest.mark.parametrize(
    ("path", "lines", "status"),
    [
        ("/livez", [f"X: {'a' * 8200}"], 431),
        (f"/livez?{'a' * 9000}", [], 431),
        ("/livez", [f"X-{n}: a" for n in range(200)], 431),
        ("/livez", ["Content-Length: 10"], 400),
        ("/livez", ["Transfer-Encoding: chunked"], 400),
    ],
)
def test_a_handshake_that_no_parser_takes_is_answered(
    strict: Daemon, path: str, lines: list[str], status: int
) -> None:
    with connect(strict) as connection:
        connection.sendall(handshake(path, *lines))
        assert_raw_problem(read_answer(connection), status)
        assert closed_after_s(connection) < 1
    assert "Traceback" not in strict.log_path.read_text()


def test_bad_handshakes_lock_nobody_out(strict: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            rude = stack.enter_context(connect(strict))
            rude.sendall(handshake("/livez", f"X: {'a' * 8200}"))
        time.sleep(0.5)
        with connect(strict) as robot:
            robot.sendall(request_bytes("/livez", method="GET"))
            assert read_answer(robot)[0] == 200


def test_a_message_that_does_not_end_is_closed_in_time_and_whole_ones_are_not(strict: Daemon) -> None:
    episode, calm = new_episode(strict), new_episode(strict)
    with stream(strict, episode) as slow, stream(strict, calm) as robot:
        slow.sendall(frame(b"[", size_bytes=1000))
        for index in range(5):  # half of each message waits for the other, over more than the limit in all
            whole = frame(step_bytes(index))
            robot.sendall(whole[:20])
            time.sleep(0.4)
            robot.sendall(whole[20:])
            with contextlib.suppress(OSError):
                slow.sendall(b" ")  # a drop now and then buys no more time
        assert close_code(slow) == 1008
        assert closed_after_s(slow) < 1
        time.sleep(0.2)
        assert httpx.get(f"{strict.url}/episodes/{calm}").json()["steps"] == 5


def test_unfinished_messages_are_bounded_together_and_small_ones_always_pass(strict: Daemon) -> None:
    episode = new_episode(strict)
    before = psutil.Process(strict.process.pid).memory_info().rss
    with contextlib.ExitStack() as stack:
        rude = [stack.enter_context(stream(strict, episode)) for _ in range(8)]
        for connection in rude:
            with contextlib.suppress(OSError):
                connection.sendall(frame(b" " * (10 * MIB), size_bytes=12 * MIB))
        held = psutil.Process(strict.process.pid).memory_info().rss - before
        assert held < 64 * MIB
        with stream(strict, episode) as robot:
            whole = frame(step_bytes(0))
            robot.sendall(whole[:20])
            time.sleep(0.1)
            robot.sendall(whole[20:])
            assert b'"step_index":0' in robot.recv(4096)
        big = httpx.post(f"{strict.url}/episodes", content=b" " * (3 * MIB) + b"{}")
        assert big.status_code == 503
        assert "max_queued_bytes" in big.json()["detail"]
        assert httpx.post(f"{strict.url}/episodes", json={}).status_code == 201
        codes = [close_code(connection) for connection in rude]
        assert 1013 in codes and set(codes) <= {1008, 1013}, codes
    assert httpx.post(f"{strict.url}/episodes", content=b" " * (3 * MIB) + b"{}").status_code == 201


def test_a_message_of_empty_frames_is_not_small(strict: Daemon) -> None:
    episode = new_episode(strict)
    with stream(strict, episode) as endless:
        endless.sendall(frame(b"", fin=False))
        with contextlib.suppress(OSError):
            for _ in range(300):
                endless.sendall(frame(b"", opcode=0, fin=False) * 1000)
        assert close_code(endless) == 1013


def test_what_a_client_left_half_said_is_freed_at_once(strict: Daemon) -> None:
    episode = new_episode(strict)
    process = psutil.Process(strict.process.pid)

    def cut_one() -> None:
        with stream(strict, episode) as connection:
            connection.sendall(frame(b" " * (14 * MIB), size_bytes=16 * MIB))
        time.sleep(0.05)

    cut_one()
    before = process.memory_info().rss
    for _ in range(10):
        cut_one()
    time.sleep(0.3)
    assert process.memory_info().rss - before < 28 * MIB


def test_text_that_is_no_utf8_is_closed_with_1007_and_one_warning(strict: Daemon) -> None:
    episode = new_episode(strict)
    with stream(strict, episode) as connection:
        connection.sendall(frame(b"\xff\xfe{}"))
        assert close_code(connection) == 1007
    lines = [json.loads(line) for line in strict.log_path.read_text().splitlines() if "1007" in line]
    assert [line["level"] for line in lines] == ["warning"]
    assert "exception" not in lines[0]
