"""Connections that misbehave: slow, endless, half-closed, too many. A real daemon and raw sockets."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.api.wire import assert_raw_problem, closed_after_s, connect, read_answer, request_bytes, step_bytes
from tests.processes import Daemon, running_daemon

MAX_CONNECTIONS = 40
LIMITS = {
    "BRAIN_HTTP__MAX_CONNECTIONS": str(MAX_CONNECTIONS),
    "BRAIN_HTTP__HEADER_TIMEOUT_S": "1.5",
    "BRAIN_HTTP__BODY_TIMEOUT_S": "1.5",
    "BRAIN_CAPTURE__MAX_BODY_BYTES": "1000000",
}


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with short patience and few places."""
    with running_daemon(tmp_path_factory.mktemp("connections") / "brain", env=LIMITS) as running:
        yield running


def open_episode(daemon: Daemon) -> str:
    episode_id: str = httpx.post(f"{daemon.url}/episodes", json={}).json()["episode_id"]
    return episode_id


def steps_of(daemon: Daemon, episode: str) -> int:
    return int(httpx.get(f"{daemon.url}/episodes/{episode}").json()["steps"])


def test_a_slow_head_and_a_slow_body_are_cut_off(strict: Daemon) -> None:
    episode = open_episode(strict)
    body = step_bytes(0)
    request = request_bytes(f"/episodes/{episode}/steps", body)
    with connect(strict) as slow_head, connect(strict) as slow_body, connect(strict) as silent:
        slow_head.sendall(request[:20])
        slow_body.sendall(request[:-10])
        time.sleep(0.7)
        slow_head.sendall(request[20:22])  # a drop now and then buys no more time
        slow_body.sendall(request[-10:-9])
        assert "head" in assert_raw_problem(read_answer(slow_head), 408)["detail"]
        assert "body" in assert_raw_problem(read_answer(slow_body), 408)["detail"]
        for connection in (slow_head, slow_body, silent):
            assert closed_after_s(connection) < 2
    assert steps_of(strict, episode) == 0


def test_time_between_requests_is_not_the_clients_slowness(strict: Daemon) -> None:
    episode = open_episode(strict)
    with connect(strict) as robot:
        for index in range(3):
            robot.sendall(request_bytes(f"/episodes/{episode}/steps", step_bytes(index)))
            assert read_answer(robot)[0] == 200
            time.sleep(0.8)
    assert steps_of(strict, episode) == 3


def test_a_head_without_end_is_refused(strict: Daemon) -> None:
    with connect(strict) as endless:
        endless.sendall(b"POST /episodes HTTP/1.1\r\nHost: brain\r\n")
        with contextlib.suppress(OSError):
            for number in range(20_000):
                endless.sendall(b"X-%d: %b\r\n" % (number, b"a" * 100))
        assert_raw_problem(read_answer(endless), 431)


@pytest.mark.parametrize("noise", [b"\x00\xff\x16\x03\x01\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST\r\n\r\n"])
def test_what_is_no_http_is_a_problem_too(strict: Daemon, noise: bytes) -> None:
    with connect(strict) as connection:
        connection.sendall(noise)
        assert_raw_problem(read_answer(connection), 400)
        assert closed_after_s(connection) < 1


@pytest.mark.parametrize("unix", [False, True])
def test_a_half_closed_client_gets_its_answer(strict: Daemon, unix: bool) -> None:
    episode = open_episode(strict)
    with connect(strict, unix=unix) as robot:
        robot.sendall(request_bytes(f"/episodes/{episode}/steps", step_bytes(0)))
        robot.shutdown(socket.SHUT_WR)
        status, _, body = read_answer(robot)
        assert (status, json.loads(body)["step_index"]) == (200, 0)
        assert closed_after_s(robot) < 1
    with connect(strict, unix=unix) as robot:
        robot.sendall(request_bytes(f"/episodes/{episode}/steps", step_bytes(1))[:-5])
        robot.shutdown(socket.SHUT_WR)
        assert closed_after_s(robot) < 1
    assert steps_of(strict, episode) == 1
    assert '"level": "error"' not in strict.log_path.read_text()


def test_a_client_that_leaves_in_the_middle_is_no_error(strict: Daemon) -> None:
    for path in ("/episodes/none/steps", "/episodes", "/infer"):
        with connect(strict) as robot:
            robot.sendall(request_bytes(path, b"{" + b" " * 200_000)[:-5])
            time.sleep(0.05)
    assert httpx.get(f"{strict.url}/livez").status_code == 200
    assert '"level": "error"' not in strict.log_path.read_text()


def test_requests_sent_ahead_are_answered_in_order(strict: Daemon) -> None:
    episode = open_episode(strict)
    with connect(strict) as robot:
        robot.sendall(b"".join(request_bytes(f"/episodes/{episode}/steps", step_bytes(n)) for n in range(50)))
        data = b""
        while data.count(b"step_index") < 50:
            data += robot.recv(65536)
    indexes = [int(part.split(b",")[0]) for part in data.split(b'"step_index":')[1:]]
    assert indexes == list(range(50))


def test_the_connection_goes_on_after_a_body_that_was_too_large(strict: Daemon) -> None:
    episode = open_episode(strict)
    with connect(strict) as robot:
        robot.sendall(request_bytes(f"/episodes/{episode}/steps", b"[" * 3_000_000))
        assert_raw_problem(read_answer(robot), 413)
        robot.sendall(request_bytes(f"/episodes/{episode}/steps", step_bytes(0)))
        assert read_answer(robot)[0] == 200


def test_over_the_limit_a_connection_is_told_so_and_the_unix_socket_is_not_counted(strict: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connect(strict)) for _ in range(MAX_CONNECTIONS)]
        for connection in busy:
            connection.sendall(request_bytes("/livez", method="GET"))
            assert read_answer(connection)[0] == 200
        with connect(strict) as refused:
            answer = read_answer(refused)
            assert_raw_problem(answer, 503)
            assert int(answer[1]["retry-after"]) >= 1
            assert closed_after_s(refused) < 1
        with connect(strict, unix=True) as robot:
            robot.sendall(request_bytes("/livez", method="GET"))
            assert read_answer(robot)[0] == 200
        busy[0].sendall(request_bytes("/livez", method="GET"))
        assert read_answer(busy[0])[0] == 200, "who is inside stays inside"
    with connect(strict) as again:
        time.sleep(0.1)
        again.sendall(request_bytes("/livez", method="GET"))
        assert read_answer(again)[0] == 200


@pytest.mark.long
def test_a_swarm_of_slow_clients_does_not_stop_a_robot(strict: Daemon) -> None:
    """200 connections that drip their heads, renewed as they are cut off: the robot records on, TCP or Unix."""
    episode = open_episode(strict)
    swarm: list[socket.socket] = []
    latencies_s: list[float] = []
    index = 0
    with connect(strict, unix=True) as near, connect(strict) as far:
        for robot in (near, far):
            robot.sendall(request_bytes("/livez", method="GET"))
            assert read_answer(robot)[0] == 200
        until_s = time.monotonic() + 5
        while time.monotonic() < until_s:
            while len(swarm) < 200:
                swarm.append(connect(strict))
                with contextlib.suppress(OSError):
                    swarm[-1].sendall(b"POST /infer HTTP/1.1\r\nX: ")
            for drip in list(swarm):
                try:
                    drip.sendall(b"a")
                except OSError:
                    drip.close()
                    swarm.remove(drip)
            for robot in (near, far):
                begun_s = time.monotonic()
                robot.sendall(request_bytes(f"/episodes/{episode}/steps", step_bytes(index)))
                assert read_answer(robot)[0] == 200
                latencies_s.append(time.monotonic() - begun_s)
                index += 1
        # A robot that comes only now takes the place of one that never asked for anything.
        time.sleep(1.1)
        with connect(strict) as late:
            late.sendall(request_bytes("/livez", method="GET"))
            assert read_answer(late)[0] == 200
    for drip in swarm:
        drip.close()
    assert index > 50
    assert sorted(latencies_s)[int(0.99 * len(latencies_s))] < 0.5
    assert steps_of(strict, episode) == index
