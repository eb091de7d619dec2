"""A model that sees behind a real daemon: every protocol's way to send an image, what is refused, the replay."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jax
import msgspec
import numpy as np
import pytest
from websockets.sync.client import connect

from brain_service.api.msgpack_numpy import pack, unpack
from brain_service.cli import main
from brain_service.export.jax_step import export_policy
from brain_service.export.policy import flat_params, make_policy_step
from brain_service.model.state import carry_shapes
from tests.export.models import NORMALISER
from tests.export.test_images import IMAGE, SEEING, seeing
from tests.jobs_http import wait_for_job
from tests.pictures import decode, picture, pixels
from tests.processes import Daemon, running_daemon
from tests.training.camera import record_scenes

HEIGHT, WIDTH, _ = IMAGE.source
BODY = {"arm": {"joints": [101.0, -5.1, 0.3]}, "gripper": {"open": True}, "task": "reach"}
FLAT = {"arm/joints": np.asarray([101.0, -5.1, 0.3]), "gripper/open": np.bool_(True), "task": "reach"}
"""`BODY` as openpi's clients name it."""
PATIENCE_S = 240.0

pytestmark = pytest.mark.long


def file_of(seed: int, kind: str = "png") -> bytes:
    return picture(seed, kind, HEIGHT, WIDTH)


def as_json(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module", params=["jax", "onnx"])
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that serves the model on one of the CPU's backends."""
    data_dir = tmp_path_factory.mktemp("seeing") / "brain"
    bundle = export_policy(seeing(), data_dir / "models", forms=("jax", "onnx"))
    (data_dir / "models" / "active").symlink_to(bundle.name)
    env = {
        "BRAIN_INFERENCE__CPU_RUNTIME": request.param,
        "BRAIN_INFERENCE__DEADLINE_MS": "30000",
        "BRAIN_INFERENCE__WORKER_HANG_S": "120",
    }
    with running_daemon(data_dir, env=env) as started:
        until(lambda: httpx.get(f"{started.url}/readyz", params={"for": "inference"}).status_code == 200)
        yield started


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.05)


def session(daemon: Daemon) -> str:
    answer = httpx.post(f"{daemon.url}/sessions", json={}, timeout=60)
    answer.raise_for_status()
    found: str = answer.json()["session_id"]
    return found


def infer(daemon: Daemon, session_id: str, observation: dict[str, Any], **more: Any) -> httpx.Response:
    body = {"session_id": session_id, "observation": observation, "deadline_ms": 30_000, **more}
    return httpx.post(f"{daemon.url}/infer", json=body, timeout=60)


def infer_packed(daemon: Daemon, session_id: str, image: Any) -> httpx.Response:
    if isinstance(image, np.ndarray):
        image = {"__ndarray__": True, "dtype": image.dtype.str, "shape": image.shape, "data": image.tobytes()}
    body = {"session_id": session_id, "observation": {**BODY, "camera": image}, "deadline_ms": 30_000}
    headers = {"Content-Type": "application/msgpack"}
    return httpx.post(f"{daemon.url}/infer", content=msgspec.msgpack.encode(body), headers=headers, timeout=60)


def command(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"] == "application/msgpack":
        typed = msgspec.msgpack.decode(answer.content)["action"]["command"]
        return floats(np.frombuffer(typed["data"], typed["dtype"]))
    return floats(answer.json()["action"]["command"])


def floats(values: Any) -> list[float]:
    """Return numbers of any protocol as float32 has them."""
    found: list[float] = np.asarray(values, np.float32).tolist()
    return found


def expected(image: bytes) -> np.ndarray[Any, Any]:
    """Return the model's own first action for `BODY` and an image."""
    carry = tuple(np.zeros((1, size), np.float32) for size in carry_shapes(SEEING).values())
    observation = np.asarray([[*BODY["arm"]["joints"], 1.0]], np.float32)  # type: ignore[index]
    zeros = np.zeros((1, 2), np.float32), np.zeros(1, np.float32), np.ones(1, np.float32)
    step = jax.jit(make_policy_step(SEEING, NORMALISER))
    _, action = step(flat_params(seeing().params), carry, observation, *zeros, IMAGE.pixels(image)[None])
    found: np.ndarray[Any, Any] = np.asarray(action)[0, 0]
    return found


def test_every_protocol_shows_the_model_the_same_image(daemon: Daemon) -> None:
    file = file_of(1)
    first = command(infer(daemon, session(daemon), {**BODY, "camera": as_json(file)}))
    span = NORMALISER.action_high - NORMALISER.action_low
    assert np.abs((np.asarray(first) - expected(file)) / span).max() <= 1e-4
    for image in (file, decode(file)):
        assert command(infer_packed(daemon, session(daemon), image)) == first
    for image in (file, decode(file)):
        with connect(f"ws://127.0.0.1:{daemon.port}", open_timeout=60, proxy=None) as socket:
            assert unpack(socket.recv(timeout=60))["observation"]["camera"]["dtype"] == "image"  # type: ignore[arg-type]
            socket.send(pack({"observation/camera": image, **FLAT, "deadline_ms": 30_000}))
            reply = socket.recv(timeout=60)
            assert isinstance(reply, bytes), reply
            assert floats(unpack(reply)["actions"][0]) == first
    with connect(f"ws://127.0.0.1:{daemon.port}/infer/stream", open_timeout=60, proxy=None) as socket:
        body = {"session_id": session(daemon), "observation": {**BODY, "camera": as_json(file)}}
        socket.send(json.dumps(body | {"deadline_ms": 30_000}))
        assert floats(json.loads(socket.recv(timeout=60))["action"]["command"]) == first
    assert command(infer(daemon, session(daemon), {**BODY, "camera": as_json(file_of(2))})) != first


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (None, "missing camera"),
        (as_json(picture(1, height=4, width=4)), "expected an image of shape"),
        (as_json(file_of(1)[:-20]), "camera"),
        ("images/" + 64 * "a" + ".png", "send the image itself"),
        (pixels(1, HEIGHT, WIDTH).tolist(), "expected a PNG or JPEG"),
        (pixels(1, HEIGHT, WIDTH - 1), "expected an image of shape"),
        (pixels(1, HEIGHT, WIDTH).astype(np.float32), "float32"),
    ],
    ids=["missing", "small", "cut", "reference", "list", "narrow", "floats"],
)
def test_an_image_that_cannot_be_seen_is_a_422_that_names_it(daemon: Daemon, image: Any, said: str) -> None:
    session_id = session(daemon)
    if isinstance(image, np.ndarray):
        answer = infer_packed(daemon, session_id, image)
    else:
        answer = infer(daemon, session_id, BODY if image is None else {**BODY, "camera": image})
    problem = answer.json()
    assert (answer.status_code, problem["field"]) == (422, "observation/camera"), problem
    assert said in problem["detail"] and problem["next_step"] == 0
    assert command(infer(daemon, session_id, {**BODY, "camera": as_json(file_of(1))}, step=0))


def test_what_was_seen_is_recorded_and_replayed_bit_for_bit(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = httpx.post(f"{daemon.url}/episodes", json={"environment_id": "toy"}, timeout=60)
    episode = answer.json()["episode_id"]
    session_id = session(daemon)
    for t in range(4):
        image = as_json(file_of(t, "jpeg" if t % 2 else "png"))
        command(infer(daemon, session_id, {**BODY, "camera": image}, record=episode))
    httpx.post(f"{daemon.url}/episodes/{episode}/end", json={"reason": "truncated"}).raise_for_status()
    code = main(["replay", episode, "--data-dir", str(daemon.data_dir), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["equal"] == found["policy_steps"] == 4, found
    assert code == 0


def test_pixels_are_recorded_as_a_file_that_holds_them(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    episode = httpx.post(f"{daemon.url}/episodes", json={}, timeout=60).json()["episode_id"]
    with connect(f"ws://127.0.0.1:{daemon.port}", open_timeout=60, proxy=None) as socket:
        socket.recv(timeout=60)
        for t in range(2):
            socket.send(
                pack({"camera": pixels(t, HEIGHT, WIDTH), **FLAT, "record": episode, "deadline_ms": 30_000})
            )
            reply = socket.recv(timeout=60)
            assert isinstance(reply, bytes), reply
    httpx.post(f"{daemon.url}/episodes/{episode}/end", json={"reason": "truncated"}).raise_for_status()
    steps = httpx.get(f"{daemon.url}/episodes/{episode}/steps").json()["steps"]
    for t, step in enumerate(steps):
        stored = httpx.get(f"{daemon.url}/episodes/{episode}/{step['observation']['camera']}").content
        assert np.array_equal(decode(stored), pixels(t, HEIGHT, WIDTH))
    assert main(["replay", episode, "--data-dir", str(daemon.data_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["equal"] == 2


@pytest.mark.slow
def test_what_a_camera_recorded_becomes_a_model_that_sees(tmp_path: Path) -> None:
    record_scenes(tmp_path / "brain" / "episodes", 4)
    with running_daemon(tmp_path / "brain", env={"BRAIN_INFERENCE__DEADLINE_MS": "30000"}) as daemon:
        body = {"preset": "development", "steps": 2, "batch_size": 2, "sequence_length": 8, "image": "auto"}
        answer = httpx.post(f"{daemon.url}/pipeline", json=body, timeout=60)
        assert answer.status_code == 202, answer.text
        job = wait_for_job(daemon.url + answer.headers["location"])
        assert job["state"] == "succeeded", job
        session_id = session(daemon)
        blind = infer(daemon, session_id, {"noise": [0.1, 0.2]})
        assert (blind.status_code, blind.json()["field"]) == (422, "observation/camera")
        seen = infer(daemon, session_id, {"noise": [0.1, 0.2], "camera": as_json(picture(1, "png", 16, 16))})
        assert len(command(seen)) == 2
