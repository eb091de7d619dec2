"""`WS /` on the toy model: openpi's protocol by hand, for what no well-behaved client of theirs would send."""

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from brain_service.api.msgpack_numpy import pack, unpack
from tests.api.conftest import Driven, bearer, token
from tests.api.test_infer_stream import LINGER, observations
from tests.inference.harness import PATIENCE_S
from tests.inference.toy import NONFINITE, Floats, Reference
from tests.processes import Daemon


def robot(driven: Driven, name: str = "robot") -> ClientConnection:
    headers = {"Authorization": f"Api-Key {token(name)}"}
    return connect(f"ws://127.0.0.1:{driven.daemon.port}", additional_headers=headers, open_timeout=30, proxy=None)


def see(seen: Floats, **extra: Any) -> dict[str, Any]:
    return {"observation/joints": seen[:2].astype(np.float64), "load": seen[2], **extra}


def ask(socket: ClientConnection, message: Any) -> dict[str, Any]:
    """Send one message and return its answer, which is no error."""
    socket.send(pack(message))
    reply = socket.recv(timeout=60)
    assert isinstance(reply, bytes), reply
    found: dict[str, Any] = unpack(reply)
    return found


def greeting(socket: ClientConnection) -> dict[str, Any]:
    first = socket.recv(timeout=60)
    assert isinstance(first, bytes)
    found: dict[str, Any] = unpack(first)
    return found


def refused(socket: ClientConnection, message: bytes | str) -> dict[str, Any]:
    socket.send(message)
    reply = socket.recv(timeout=60)
    assert isinstance(reply, str)
    assert "Traceback" not in reply
    problem: dict[str, Any] = json.loads(reply)
    return problem


def sessions(driven: Driven) -> list[str]:
    listed = httpx.get(f"{driven.url}/sessions", headers=bearer("reader")).json()["sessions"]
    return [one["session_id"] for one in listed]


def eventually(condition: Callable[[], bool]) -> None:

    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.02)


def bad_messages(seen: Floats) -> list[tuple[bytes | str, int, str | None]]:
    """Return messages that cannot be answered, with status and field of the problem."""
    array = msgspec.msgpack.encode({"load": 1.0}) + b"trailing"
    objects = {"load": {b"__ndarray__": True, b"data": b"x", b"dtype": "|O", b"shape": [1]}}
    return [
        ("{}", 400, None),
        (b"", 400, None),
        (b"\xc1", 400, None),
        (array, 400, None),
        (pack([1]), 422, "observation"),
        (pack({1: 2}), 422, "observation"),
        (pack({}), 422, "observation"),
        (pack(objects), 400, None),
        (pack(see(seen, torque=np.zeros(3))), 422, "observation/torque"),
        (pack({"load": seen[2]}), 422, "observation/arm/joints"),
        (pack(see(seen) | {"load": np.zeros(2)}), 422, "observation/load"),
        (pack(see(seen) | {"load": np.float32(np.nan)}), 422, "observation/load"),
        (pack(see(seen) | {"load": "heavy"}), 422, "observation/load"),
        (pack(see(seen, reset="yes")), 422, "reset"),
        (pack(see(seen, reward="much")), 422, "reward"),
        (pack(see(seen, reward=float("inf"))), 422, "reward"),
        (pack(see(seen, deadline_ms=True)), 422, "deadline_ms"),
        (pack(see(seen, deadline_ms=0)), 422, "deadline_ms"),
        (pack(see(seen, deadline_ms=1e-6)), 504, None),
        (pack(see(seen) | {"load": 2 * NONFINITE}), 503, None),
        # Not even a restart gives the old state up for a message that is wrong.
        (pack(see(seen, reset=True) | {"load": np.float32(np.nan)}), 422, "observation/load"),
        (pack(see(seen, reset=True, reward=float("nan"))), 422, "reward"),
        (pack(see(seen, reset=True, torque=np.zeros(3))), 422, "observation/torque"),
        (pack(see(seen, note="x" * 300_000)), 413, None),
    ]


def test_errors_are_text_and_the_session_is_as_before(driven: Driven) -> None:
    first, second = observations(2)
    reference = Reference()
    with robot(driven) as socket:
        assert greeting(socket)["model_id"] == driven.model_id
        assert np.allclose(ask(socket, see(first))["actions"], reference.step(first), atol=1e-6)
        for message, status, field in bad_messages(second):
            problem = refused(socket, message)
            assert (problem["status"], problem.get("field")) == (status, field or problem.get("field")), problem
        reply = ask(socket, see(second, reward=0.5))
        assert np.allclose(reply["actions"], reference.step(second, 0.5), atol=1e-6)
        assert (reply["step"], reply["actions"].dtype) == (1, np.float32)
        assert reply["server_timing"]["prev_total_ms"] > 0
    assert '"level": "error"' not in driven.daemon.log_path.read_text()


def test_the_connection_is_the_session(driven: Driven) -> None:
    first, second = observations(2)
    with robot(driven) as one, robot(driven) as other:
        mine = greeting(one)["session_id"]
        assert mine != greeting(other)["session_id"]
        reference = Reference()
        ask(one, see(first))
        reference.step(first)
        assert np.allclose(ask(other, see(second))["actions"], Reference().step(second), atol=1e-6)
        assert np.allclose(ask(one, see(second))["actions"], reference.step(second), atol=1e-6)
        assert ask(one, {"reset": True})["session_id"] == mine  # by itself: answered as a new connection is
        assert np.allclose(ask(one, see(second))["actions"], Reference().step(second), atol=1e-6)
        assert len(sessions(driven)) == 2
    eventually(lambda: not sessions(driven))


def test_a_session_that_was_ended_elsewhere_is_an_error_until_a_restart(driven: Driven) -> None:
    (seen,) = observations(1)
    with robot(driven) as socket:
        session = greeting(socket)["session_id"]
        ask(socket, see(seen))
        httpx.delete(f"{driven.url}/sessions/{session}", headers=bearer("robot")).raise_for_status()
        problem = refused(socket, pack(see(seen)))
        assert problem["status"] == 409
        assert "reset: true" in problem["detail"]
        assert np.allclose(ask(socket, see(seen, reset=True))["actions"], Reference().step(seen), atol=1e-6)
        assert session not in sessions(driven)
    eventually(lambda: not sessions(driven))


def test_a_robot_that_vanishes_mid_request_leaves_no_session(driven: Driven) -> None:
    (seen,) = observations(1)
    os.kill(driven.worker_pid, signal.SIGSTOP)
    try:
        with robot(driven) as gone:
            gone.send(pack(see(seen)))
            gone.socket.setsockopt(*LINGER)
            gone.socket.close()
    finally:
        os.kill(driven.worker_pid, signal.SIGCONT)
    eventually(lambda: not sessions(driven))
    with robot(driven) as socket:
        socket.recv()
        assert np.allclose(ask(socket, see(seen))["actions"], Reference().step(seen), atol=1e-6)


def test_what_the_robot_did_is_recorded(driven: Driven) -> None:
    seen = observations(3)
    with httpx.Client(base_url=driven.url, headers=bearer("robot")) as http:
        episode = http.post("/episodes", json={"environment_id": "toy"}).json()["episode_id"]
        with robot(driven) as socket:
            socket.recv()
            replies = [ask(socket, see(one, record=episode, prompt="lift")) for one in seen]
        eventually(lambda: len(http.get(f"/episodes/{episode}/steps").json()["steps"]) == 3)
        steps = http.get(f"/episodes/{episode}/steps").json()["steps"]
    assert [one["action"]["gripper"] for one in steps] == pytest.approx(
        [float(r["actions"][0, 0]) for r in replies]
    )
    assert steps[0]["observation"].keys() == {"arm", "load"}


@pytest.mark.parametrize(("name", "status"), [("reader", 403), ("boss", 403), ("nobody", 401)])
def test_the_key_is_checked(driven: Driven, name: str, status: int) -> None:
    with pytest.raises(InvalidStatus) as raised:
        robot(driven, name)
    assert raised.value.response.status_code == status


def test_without_a_model_the_handshake_says_what_to_do(daemon: Daemon) -> None:
    with pytest.raises(InvalidStatus) as raised:
        connect(f"ws://127.0.0.1:{daemon.port}/", proxy=None)
    assert raised.value.response.status_code == 503
    assert b"pipeline" in (raised.value.response.body or b"")
    with pytest.raises(InvalidStatus) as raised:
        connect(f"ws://127.0.0.1:{daemon.port}/elsewhere", proxy=None)
    assert raised.value.response.status_code == 404
    assert httpx.get(f"{daemon.url}/healthz").text == "OK\n"
