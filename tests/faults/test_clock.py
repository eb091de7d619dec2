"""Clocks that jump and clients that half-close: nothing stops, nothing is recorded twice, nothing is lost."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from brain_service.episodes.reader import read_episode
from tests.episodes.bodies import open_store
from tests.faults.robots import body, differs
from tests.processes import Daemon, running_daemon


def test_a_clock_that_jumps_backwards_delays_no_flush_and_mixes_up_no_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Raspberry Pi has no battery behind its clock: it jumps by years when the network comes up, or back."""
    offset_ns = 0
    real_ns, real_s = time.time_ns, time.time
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + offset_ns)
    monkeypatch.setattr(time, "time", lambda: real_s() + offset_ns / 1e9)
    with open_store(tmp_path, sync_interval_s=0.01) as store:
        episodes = []
        for jump_years in (0, -20, +30, -1):
            offset_ns = jump_years * 365 * 86_400 * 10**9
            episode = store.create({}).episode_id
            episodes.append(episode)
            for index in range(3):
                sent = body(episode, index)
                del sent["timestamp_ns"]
                store.append_json(episode, orjson.dumps(sent))
            give_up_s = time.monotonic() + 5
            while store.get(episode)["durable_through"] < 2:
                assert time.monotonic() < give_up_s, "a flush waits for the clock"
                time.sleep(0.002)
        assert len(set(episodes)) == 4
        for episode in episodes:
            assert store.end(episode).steps == 3
        assert {item["episode_id"] for item in store.list()[0]} == set(episodes)
    with open_store(tmp_path, recover_idle_s=0.05) as store:
        assert [store.get(episode)["state"] for episode in episodes] == ["truncated"] * 4
    for episode in episodes:
        assert len(read_episode(tmp_path / f"{episode}.jsonl")) == 3


def test_an_episode_in_which_the_clock_jumps_is_recorded_and_read_in_the_order_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offset_ns = 0
    real_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + offset_ns)
    with open_store(tmp_path) as store:
        episode = store.create({}).episode_id
        for index in range(4):
            offset_ns = -index * 3600 * 10**9
            sent = body(episode, index)
            del sent["timestamp_ns"]
            store.append_json(episode, orjson.dumps(sent))
        records = store.steps(episode)
    times = [record["step_metadata"]["timestamp_ns"] for record in records]
    assert times == sorted(times, reverse=True), "the time is the clock's; the order is the index's"
    for index, record in enumerate(records):
        record["step_metadata"]["timestamp_ns"] = body(episode, index)["timestamp_ns"]
        assert differs(record, episode, index) is None


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("half-closed") / "brain") as running:
        yield running


def ask(daemon: Daemon, method: str, path: str, content: bytes, *, half_close: bool) -> bytes:
    """Send one request, say that nothing more comes, and read the answer to its end."""
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as client:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: brain\r\nContent-Type: application/json\r\nConnection: close\r\n"
        )
        client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
        return answer


def test_a_client_that_half_closes_is_answered_or_its_step_is_a_harmless_retry(daemon: Daemon) -> None:
    created = ask(daemon, "POST", "/episodes", b'{"episode_id":"half"}', half_close=False)
    assert b" 201 " in created.splitlines()[0]
    for index in range(5):
        content = orjson.dumps(body("half", index))
        for half_close in (True, False):
            answer = ask(daemon, "POST", "/episodes/half/steps", content, half_close=half_close)
            assert not answer or b" 200 " in answer.splitlines()[0], answer
        assert answer.endswith(f'"step_index":{index},"durable_through":'.encode() + answer.rpartition(b":")[2])
    stored = orjson.loads(
        ask(daemon, "GET", "/episodes/half/steps", b"", half_close=False).partition(b"\r\n\r\n")[2]
    )
    assert [differs(step, "half", index) for index, step in enumerate(stored["steps"])] == [None] * 5


def test_clients_that_vanish_in_the_middle_of_a_body_store_nothing_and_hold_up_nobody(daemon: Daemon) -> None:
    ask(daemon, "POST", "/episodes", b'{"episode_id":"gone"}', half_close=False)
    content = orjson.dumps(body("gone", 0))

    def vanish(place: int) -> None:
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as client:
            head = "POST /episodes/gone/steps HTTP/1.1\r\nHost: brain\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[:place])

    threads = [
        threading.Thread(target=vanish, args=(place,)) for place in range(1, len(content), len(content) // 20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    summary = orjson.loads(ask(daemon, "GET", "/episodes/gone", b"", half_close=False).partition(b"\r\n\r\n")[2])
    assert summary["steps"] == 0
    assert b" 200 " in ask(daemon, "POST", "/episodes/gone/steps", content, half_close=False).splitlines()[0]
