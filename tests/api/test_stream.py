"""`WS /episodes/{id}/stream` as a robot's controller meets it: a real daemon, a real client, real kills."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, unix_connect
from websockets.sync.client import connect as websocket_connect

from tests.api.wire import STEP
from tests.processes import Daemon, running_daemon


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for the streams that leave no trace on one another: each opens its own episode."""
    env = {"BRAIN_CAPTURE__MAX_BODY_BYTES": "1000000"}
    with running_daemon(tmp_path_factory.mktemp("stream") / "brain", env=env) as running:
        yield running


def open_episode(daemon: Daemon, **body: Any) -> str:
    episode_id: str = httpx.post(f"{daemon.url}/episodes", json=body).json()["episode_id"]
    return episode_id


def stream(daemon: Daemon, episode: str, **options: Any) -> ClientConnection:
    url = f"ws://127.0.0.1:{daemon.port}/episodes/{episode}/stream"
    connection: ClientConnection = websocket_connect(url, compression=None, **options)
    return connection


def step(index: int, **changes: Any) -> dict[str, Any]:
    return {**STEP, "step_index": index, **changes}


def typed_step(index: int) -> dict[str, Any]:
    state = np.array(STEP["observation"]["state"], np.float32)  # type: ignore[index]
    array = {"__ndarray__": True, "dtype": "<f4", "shape": [3], "data": state.tobytes()}
    return {**step(index), "observation": {"state": array}}


def receive_until(connection: ClientConnection, step_index: int, durable: bool = False) -> list[dict[str, Any]]:
    """Return every answer up to the one that covers `step_index`."""
    answers = []
    while True:
        data = connection.recv(timeout=10)
        answers.append(json.loads(data) if isinstance(data, str) else msgspec.msgpack.decode(data))
        assert answers[-1].keys() == {"step_index", "durable_through"}, answers
        covered = answers[-1]["durable_through" if durable else "step_index"]
        if covered >= step_index:
            return answers


def stored(daemon: Daemon, episode: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{daemon.url}/episodes/{episode}/steps", params={"limit": 1000})
    steps: list[dict[str, Any]] = answer.json()["steps"]
    return steps


def assert_closed(connection: ClientConnection, status: int, binary: bool = False) -> dict[str, Any]:
    """Return the problem document that comes before the close."""
    problem: dict[str, Any] = {}
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            data = connection.recv(timeout=10)
            assert isinstance(data, bytes) == binary
            problem = msgspec.msgpack.decode(data) if isinstance(data, bytes) else json.loads(data)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4000 + status
    assert problem["status"] == status
    assert problem["type"].startswith("urn:continuon-brain:problem:")
    return problem


def test_every_kind_of_message_is_recorded_and_answered_in_its_kind(daemon: Daemon) -> None:
    episode = open_episode(daemon)
    messages: list[tuple[str | bytes, int]] = [
        (json.dumps(step(0)), 0),
        (json.dumps([step(1), step(2)]), 2),
        (json.dumps(step(3)) + "\n" + json.dumps(step(4)) + "\n", 4),
        (json.dumps(step(5), indent=2), 5),
        (msgspec.msgpack.encode(typed_step(6)), 6),
        (msgspec.msgpack.encode([typed_step(7), step(8)]), 8),
        (json.dumps(step(9)), 9),
    ]
    with stream(daemon, episode) as connection:
        for message, last in messages:
            connection.send(message)
            data = connection.recv(timeout=10)
            while json.loads(data) if isinstance(data, str) else msgspec.msgpack.decode(data):
                answer = json.loads(data) if isinstance(data, str) else msgspec.msgpack.decode(data)
                if answer["step_index"] == last:
                    break
                data = connection.recv(timeout=10)  # what became durable meanwhile was told in between
            assert isinstance(data, str) == isinstance(message, str)
    steps = stored(daemon, episode)
    assert [s["step_metadata"]["step_index"] for s in steps] == list(range(10))
    assert all(s["observation"]["state"] == pytest.approx([0.1, -0.2, 0.3]) for s in steps)


def test_acks_are_cumulative_and_tell_when_steps_become_durable(daemon: Daemon) -> None:
    episode = open_episode(daemon)
    with stream(daemon, episode) as connection:
        for index in range(500):
            connection.send(json.dumps(step(index)))
        answers = receive_until(connection, 499)
        # Nothing more is sent: the daemon tells by itself once the medium has them.
        answers += receive_until(connection, 499, durable=True) if answers[-1]["durable_through"] < 499 else []
    for name in ("step_index", "durable_through"):
        values = [answer[name] for answer in answers]
        assert values == sorted(values)
    assert len(answers) < 500, "one answer covers many messages"
    assert len(stored(daemon, episode)) == 500


def test_under_durability_step_every_ack_is_durable(daemon: Daemon) -> None:
    episode = open_episode(daemon, durability="step")
    with stream(daemon, episode) as connection:
        for index in range(50):
            connection.send(json.dumps(step(index)))
        for answer in receive_until(connection, 49):
            assert answer["durable_through"] >= answer["step_index"]


def test_it_runs_over_the_unix_socket(daemon: Daemon) -> None:
    episode = open_episode(daemon)
    path = str(daemon.data_dir / "brain.sock")
    with unix_connect(path, f"ws://brain/episodes/{episode}/stream", compression=None) as connection:
        connection.send(json.dumps(step(0)))
        receive_until(connection, 0)
    assert len(stored(daemon, episode)) == 1


@pytest.mark.parametrize("binary", [False, True])
def test_the_steps_before_an_error_are_acknowledged_and_those_behind_it_are_not_taken(
    daemon: Daemon, binary: bool
) -> None:
    episode = open_episode(daemon)
    with stream(daemon, episode) as connection:
        for index in (0, 1, 5, 2):
            body = step(index)
            connection.send(msgspec.msgpack.encode(body) if binary else json.dumps(body))
        problem = assert_closed(connection, 409, binary)
    assert problem["next_step_index"] == 2
    assert len(stored(daemon, episode)) == 2
    with stream(daemon, episode) as connection:  # reconnects, resends from what it knows, and goes on
        for index in range(4):
            connection.send(json.dumps(step(index)))
        receive_until(connection, 3)
    assert len(stored(daemon, episode)) == 4


BAD = [
    ("{", 400, None),
    ("", 400, None),
    ("[1, 2", 400, None),
    (b"\xc1", 400, None),
    (json.dumps(step(0, reward="high")), 422, "reward"),
    (json.dumps(step(0, colour="red")), 422, "colour"),
    (json.dumps([step(0), step(1, observation={"state": [1.0]})]), 422, "steps/1/observation/state"),
]


@pytest.mark.parametrize(("message", "status", "field"), BAD)
def test_a_wrong_message_ends_the_stream_with_the_reason(
    daemon: Daemon, message: str | bytes, status: int, field: str | None
) -> None:
    episode = open_episode(daemon)
    with stream(daemon, episode) as connection:
        connection.send(message)
        problem = assert_closed(connection, status, isinstance(message, bytes))
    assert field is None or problem["field"] == field
    assert stored(daemon, episode) == []


def test_unknown_and_ended_episodes_are_told_apart(daemon: Daemon) -> None:
    with stream(daemon, "none-such") as connection:
        assert_closed(connection, 404)
    episode = open_episode(daemon)
    with stream(daemon, episode) as connection:
        connection.send(json.dumps(step(0)))
        receive_until(connection, 0)
        httpx.post(f"{daemon.url}/episodes/{episode}/end", json={}).raise_for_status()
        connection.send(json.dumps(step(1)))
        assert_closed(connection, 409)
    with stream(daemon, episode) as connection:
        assert_closed(connection, 409)


def test_a_message_over_the_limit_closes_with_1009(daemon: Daemon) -> None:
    with stream(daemon, open_episode(daemon)) as connection:
        with pytest.raises(ConnectionClosed) as closed:
            connection.send("[" + " " * 1_100_000)
            while True:
                connection.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


def test_any_other_path_is_no_stream(daemon: Daemon) -> None:
    for path in ("/stream", "/episodes/a/b/stream", "/episodes//stream"):
        with (
            pytest.raises(InvalidStatus) as refused,
            websocket_connect(f"ws://127.0.0.1:{daemon.port}{path}"),
        ):
            pass
        assert refused.value.response.status_code in (403, 404)


def test_a_page_of_another_host_gets_no_stream(daemon: Daemon) -> None:
    episode = open_episode(daemon)
    with pytest.raises(InvalidStatus) as refused, stream(daemon, episode, origin="http://evil.example"):
        pass
    assert refused.value.response.status_code == 403
    assert refused.value.response.headers["content-type"] == "application/problem+json"
    with stream(daemon, episode, origin=f"http://127.0.0.1:{daemon.port}") as connection:
        connection.send(json.dumps(step(0)))
        receive_until(connection, 0)


def test_what_a_leaving_client_sent_whole_is_recorded(daemon: Daemon) -> None:
    episode = open_episode(daemon)
    with stream(daemon, episode) as connection:
        for index in range(1000):
            connection.send(json.dumps(step(index)))
    deadline_s = time.monotonic() + 5
    while len(stored(daemon, episode)) < 1000 and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert len(stored(daemon, episode)) == 1000
    assert '"level": "error"' not in daemon.log_path.read_text()


@pytest.mark.long
def test_a_client_faster_than_the_rate_is_held_back_and_not_refused(tmp_path: Path) -> None:
    env = {"BRAIN_CAPTURE__MAX_STEPS_PER_S": "2000", "BRAIN_CAPTURE__MAX_BATCH_STEPS": "100"}
    text = "x" * 20_000
    with running_daemon(tmp_path / "brain", env=env) as slow:
        episode = open_episode(slow)
        before = psutil.Process(slow.process.pid).memory_info().rss
        with stream(slow, episode) as connection:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            begun_s = time.monotonic()
            for index in range(4000):
                body = step(index, observation={"state": [0.5], "note": text})
                connection.send(json.dumps(body))
            receive_until(connection, 3999)
            elapsed_s = time.monotonic() - begun_s
        grown = psutil.Process(slow.process.pid).memory_info().rss - before
        assert elapsed_s > 0.8, "a burst of one second, then the rate"
        assert grown < 40e6, "80 MB were sent"


@pytest.mark.long
def test_a_kill_loses_nothing_that_was_acknowledged_and_a_stop_says_1012(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "brain").start()
    try:
        episode = open_episode(daemon)
        with stream(daemon, episode) as connection:
            for index in range(300):
                connection.send(json.dumps(step(index)))
            acknowledged = receive_until(connection, 100)[-1]["step_index"]
            daemon.kill()
        daemon.start()
        kept = httpx.post(f"{daemon.url}/episodes/{episode}/steps", json=step(10**6)).json()["next_step_index"]
        assert kept > acknowledged
        with stream(daemon, episode) as connection:
            for index in range(100, 400):
                connection.send(json.dumps(step(index)))
            receive_until(connection, 399)
            daemon.process.terminate()
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    connection.recv(timeout=10)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
        assert daemon.process.wait(15) == 0
    finally:
        if daemon.process.poll() is None:
            daemon.kill()
