"""`WS /infer/stream` and msgpack on `POST /infer`, on a real daemon with the toy model."""

import json
import os
import signal
import socket
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.api.conftest import Driven, bearer
from tests.api.problems import assert_problem
from tests.inference.toy import Floats, Reference, as_tree, toy_observation

MSGPACK = {"Content-Type": "application/msgpack"}


@pytest.fixture
def http(driven: Driven) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=driven.url, headers=bearer("robot"), timeout=60) as client:
        yield client


@pytest.fixture
def session(http: httpx.Client) -> Iterator[str]:
    found: str = http.post("/sessions", json={}).json()["session_id"]
    yield found
    http.delete(f"/sessions/{found}")


@pytest.fixture
def stream(driven: Driven) -> Iterator[ClientConnection]:
    with open_stream(driven) as found:
        yield found


def open_stream(driven: Driven, name: str = "robot") -> ClientConnection:
    url = f"ws://127.0.0.1:{driven.daemon.port}/infer/stream"
    return connect(url, additional_headers=bearer(name), open_timeout=30, proxy=None)


def observations(count: int, seed: int = 3) -> list[Floats]:
    rng = np.random.default_rng(seed)
    return [toy_observation(rng) for _ in range(count)]


def typed(values: Any) -> dict[str, Any]:
    array = np.asarray(values, np.float32)
    return {"__ndarray__": True, "dtype": array.dtype.str, "shape": array.shape, "data": array.tobytes()}


def ask(session: str, observation: Floats, **fields: Any) -> dict[str, Any]:
    return {"session_id": session, "observation": as_tree(observation), **fields}


def ask_typed(session: str, observation: Floats, **fields: Any) -> bytes:
    tree = {"arm": {"joints": typed(observation[:2])}, "load": typed(observation[2])}
    return msgspec.msgpack.encode({"session_id": session, "observation": tree, **fields})


def answer(stream: ClientConnection) -> dict[str, Any]:
    """Return the next answer, in whichever form it comes, with its arrays as lists."""
    frame = stream.recv(timeout=60)
    found: dict[str, Any] = json.loads(frame) if isinstance(frame, str) else msgspec.msgpack.decode(frame)
    return found


def flat(action: dict[str, Any]) -> list[float]:
    """Return an action of either form as its flat vector [gripper, velocity]."""

    def value(part: Any) -> Any:
        if isinstance(part, dict):
            return np.frombuffer(part["data"], part["dtype"]).reshape(part["shape"])
        return part

    return [float(x) for name in ("gripper", "velocity") for x in np.ravel(value(action[name]))]


def test_text_and_binary_messages_are_answered_as_the_model_says(stream: ClientConnection, session: str) -> None:
    reference = Reference()
    for step, seen in enumerate(observations(8)):
        if step % 2:
            stream.send(ask_typed(session, seen, step=step, reward=0.25))
        else:
            stream.send(json.dumps(ask(session, seen, step=step, reward=0.25)))
        reply = answer(stream)
        assert flat(reply["action"]) == pytest.approx(reference.step(seen, 0.25)[0], abs=1e-6)
        assert (reply["step"], reply["state_step"], reply["backend"]) == (step, step, "jax-cpu")
        assert {"queue", "compute", "total"} <= reply["timings_us"].keys()
        assert isinstance(reply["action"]["velocity"], dict if step % 2 else list)


def test_post_takes_and_gives_msgpack(http: httpx.Client, session: str) -> None:
    reference = Reference()
    for step, seen in enumerate(observations(3)):
        reply = http.post("/infer", content=ask_typed(session, seen, step=step), headers=MSGPACK)
        assert reply.headers["content-type"] == "application/msgpack"
        found = msgspec.msgpack.decode(reply.content)
        assert flat(found["action"]) == pytest.approx(reference.step(seen)[0], abs=1e-6)
        assert found["action"]["velocity"]["dtype"] == "<f4"
    bad = ask_typed(session, np.array([1, np.nan, 2], np.float32))
    assert_problem(http.post("/infer", content=bad, headers=MSGPACK), 422, "observation/arm/joints")
    assert_problem(http.post("/infer", content=b"\xc1", headers=MSGPACK), 400)
    lying = bad.replace(b"\xa3<f4", b"\xa3<f8")
    assert_problem(http.post("/infer", content=lying, headers=MSGPACK), 400)
    unknown = msgspec.msgpack.encode({"session_id": session, "observation": {}, "rewrad": 1})
    assert_problem(http.post("/infer", content=unknown, headers=MSGPACK), 422, "rewrad")


def test_messages_sent_ahead_are_answered_in_order(stream: ClientConnection, session: str) -> None:
    seen = observations(60)
    for step, one in enumerate(seen):
        stream.send(json.dumps(ask(session, one, step=step)))
    reference = Reference()
    for step, one in enumerate(seen):
        reply = answer(stream)
        assert reply["step"] == step
        assert flat(reply["action"]) == pytest.approx(reference.step(one)[0], abs=1e-6)


def bad_messages(session: str, seen: Floats) -> list[tuple[str | bytes, int, str | None]]:
    """Return messages that cannot be answered at step 1, with status and field of the problem."""
    nan = np.array([np.nan, 0, 0], np.float32)
    return [
        ("{", 400, None),
        ('{"session_id": "x", "observation": {"load": NaN}}', 400, None),
        (b"\xc1", 400, None),
        (b"", 400, None),
        (msgspec.msgpack.encode([1, 2]), 422, "body"),
        (json.dumps({"observation": {}}), 422, "session_id"),
        (json.dumps(ask(session, seen, speed=1)), 422, "speed"),
        (json.dumps(ask("none-such", seen)), 409, "session_id"),
        (json.dumps(ask(session, seen, step=5)), 409, "step"),
        (json.dumps(ask(session, seen, deadline_ms=1e-6)), 504, None),
        (json.dumps(ask(session, seen, deadline_ms=-1)), 422, "deadline_ms"),
        (json.dumps({"session_id": session, "observation": {"load": 1.0}}), 422, "observation/arm/joints"),
        (json.dumps(ask(session, seen) | {"observation": {"arm": 1}}), 422, "observation/arm"),
        (ask_typed(session, nan), 422, "observation/arm/joints"),
        (ask_typed(session, seen).replace(b"\xa3<f4", b"\xa3|O8"), 400, None),
        (json.dumps(ask(session, seen) | {"observation": {"x": "y" * 300_000}}), 413, None),
    ]


def test_an_error_names_its_cause_moves_nothing_and_leaves_the_connection_open(
    driven: Driven, stream: ClientConnection, session: str
) -> None:
    first, second, third = observations(3)
    reference = Reference()
    stream.send(json.dumps(ask(session, first)))
    assert flat(answer(stream)["action"]) == pytest.approx(reference.step(first)[0], abs=1e-6)
    for message, status, field in bad_messages(session, second):
        stream.send(message)
        problem = answer(stream)
        assert problem["status"] == status, (message[:80], problem)
        assert problem["type"].startswith("urn:continuon-brain:problem:")
        assert field is None or problem["field"] == field, problem
        assert "Traceback" not in problem["detail"]
        if status == 504:
            assert problem["next_step"] == 1
    for step, seen in ((1, second), (2, third)):
        stream.send(json.dumps(ask(session, seen, step=step)))
        assert flat(answer(stream)["action"]) == pytest.approx(reference.step(seen)[0], abs=1e-6)
    assert '"level": "error"' not in driven.daemon.log_path.read_text()


def test_a_step_whose_client_left_is_had_again_on_another_connection(
    driven: Driven, http: httpx.Client, session: str
) -> None:
    seen, reference = observations(3), Reference()
    os.kill(driven.worker_pid, signal.SIGSTOP)
    try:
        with open_stream(driven) as gone:
            for step, one in enumerate(seen):  # the first is at the frozen worker, two wait behind it
                gone.send(ask_typed(session, one, step=step))
            # A reset, as of a robot whose power fails: no close frame.
            gone.socket.setsockopt(*LINGER)
            gone.socket.close()
    finally:
        os.kill(driven.worker_pid, signal.SIGCONT)
    with open_stream(driven) as again:
        for step, one in enumerate(seen):
            again.send(ask_typed(session, one, step=step))
            reply = answer(again)
            assert flat(reply["action"]) == pytest.approx(reference.step(one)[0], abs=1e-6), reply
    assert http.get(f"/sessions/{session}").json()["next_step"] == 3


def test_what_is_recorded_is_what_post_infer_records(
    http: httpx.Client, stream: ClientConnection, session: str
) -> None:
    kept: list[list[dict[str, Any]]] = []
    for streamed in (False, True):
        http.post(f"/sessions/{session}/reset")
        episode = http.post("/episodes", json={"environment_id": "toy"}).json()["episode_id"]
        for step, seen in enumerate(observations(4)):
            body = ask_typed(session, seen, step=step, reward=step / 10, record=episode)
            if streamed:
                stream.send(body)
                assert answer(stream)["step"] == step
            else:
                assert http.post("/infer", content=body, headers=MSGPACK).status_code == 200
        assert http.post(f"/episodes/{episode}/end", json={"reason": "truncated"}).json()["steps"] == 4
        steps = http.get(f"/episodes/{episode}/steps").json()["steps"]
        assert [one["reward"] for one in steps] == pytest.approx([0.1, 0.2, 0.3, 0.0])
        kept.append([{name: one[name] for name in ("observation", "action", "reward")} for one in steps])
    assert kept[0] == kept[1]


def test_a_message_over_the_servers_limit_closes_with_1009(driven: Driven, session: str) -> None:
    with open_stream(driven) as stream:
        with pytest.raises(ConnectionClosed) as raised:
            stream.send(b"\x90" * (2 * 1024**2))
            answer(stream)
        assert raised.value.rcvd is not None
        assert raised.value.rcvd.code == 1009
    assert httpx.get(f"{driven.url}/livez").status_code == 200


@pytest.mark.parametrize(("name", "status"), [("reader", 403), ("boss", 403), ("nobody", 401)])
def test_it_needs_the_scope_to_control(driven: Driven, name: str, status: int) -> None:
    with pytest.raises(InvalidStatus) as raised:
        open_stream(driven, name)
    assert raised.value.response.status_code == status


LINGER = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
"""On, for 0 s: closing sends a reset."""
