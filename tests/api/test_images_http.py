"""Images over real HTTP: as msgpack, as form parts, as base64, by reference; served back; safe from kills."""

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from brain_service.datasets.dataset import open_dataset
from brain_service.episodes.images import image_reference
from brain_service.episodes.reader import read_episode
from tests.api.conftest import camera, observation
from tests.api.problems import assert_problem
from tests.pictures import picture
from tests.processes import Daemon, running_daemon

Files = dict[str, tuple[str | None, str | bytes]]

MSGPACK = {"content-type": "application/msgpack"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for the requests that leave no trace on one another: each opens its own episode."""
    with running_daemon(tmp_path_factory.mktemp("images") / "brain") as running:
        yield running


@pytest.fixture
def http(daemon: Daemon) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=daemon.url, timeout=30) as client:
        yield client


def open_episode(http: httpx.Client, **body: Any) -> str:
    episode_id: str = http.post("/episodes", json=body).raise_for_status().json()["episode_id"]
    return episode_id


def step(index: int, **observation: Any) -> dict[str, Any]:
    return {
        "step_index": index,
        "observation": {"state": [0.1 * index], **observation},
        "action": {"command": [0.5]},
    }


def post(http: httpx.Client, episode: str, body: Any) -> httpx.Response:
    return http.post(f"/episodes/{episode}/steps", content=msgspec.msgpack.encode(body), headers=MSGPACK)


def references(http: httpx.Client, episode: str) -> list[str]:
    steps = http.get(f"/episodes/{episode}/steps").raise_for_status().json()["steps"]
    return [found["observation"]["camera"] for found in steps]


def test_an_image_comes_in_every_way_and_is_served_back(http: httpx.Client, daemon: Daemon) -> None:
    episode = open_episode(http)
    assert post(http, episode, step(0, camera=picture(0))).json()["step_index"] == 0
    files: Files = {"step": (None, json.dumps(step(1))), "observation/camera": ("x.jpg", picture(1, "jpeg"))}
    assert http.post(f"/episodes/{episode}/steps", files=files).json()["step_index"] == 1
    batch: Files = {"steps": (None, json.dumps([step(2), step(3)]))}
    batch |= {f"steps/{n}/observation/camera": ("x.png", picture(n)) for n in range(2)}
    assert http.post(f"/episodes/{episode}/steps", files=batch).json()["step_index"] == 3
    as_text = step(4, camera=base64.b64encode(picture(4)).decode())
    assert http.post(f"/episodes/{episode}/steps", json=as_text).json()["step_index"] == 4
    by_name = step(5, camera=image_reference(picture(4)))
    assert http.post(f"/episodes/{episode}/steps", json=by_name).json()["step_index"] == 5
    sent = [picture(0), picture(1, "jpeg"), picture(0), picture(1), picture(4), picture(4)]
    found = references(http, episode)
    assert found == [image_reference(data) for data in sent]
    for reference, data in zip(found, sent, strict=True):
        answer = http.get(f"/episodes/{episode}/{reference}")
        assert answer.content == data
        assert answer.headers["content-type"] == ("image/jpeg" if data == sent[1] else "image/png")
    final = {"state": [1.0], "camera": base64.b64encode(picture(9)).decode()}
    http.post(f"/episodes/{episode}/end", json={"final_observation": final}).raise_for_status()
    stored = read_episode(daemon.data_dir / "episodes" / f"{episode}.jsonl")
    assert stored.observation["camera"] == sent
    assert stored.final_observation is not None
    assert stored.final_observation["camera"] == picture(9)


def test_what_is_served_never_changes(http: httpx.Client) -> None:
    episode = open_episode(http)
    post(http, episode, step(0, camera=picture(0)))
    path = f"/episodes/{episode}/{image_reference(picture(0))}"
    answer = http.get(path)
    tag = f'"{hashlib.sha256(picture(0)).hexdigest()}"'
    assert answer.headers["etag"] == tag
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    for given in (tag, f'"other", W/{tag}', "*"):
        again = http.get(path, headers={"if-none-match": given})
        assert (again.status_code, again.content) == (304, b"")
    assert http.get(path, headers={"if-none-match": '"other"'}).content == picture(0)


@pytest.mark.parametrize(
    "name",
    ["x.png", "..%2F..%2Fbrain.db", f"{'0' * 64}.png", f"{'0' * 64}.gif", "%00", "images%2Fx.png", "x" * 5000],
)
def test_what_is_no_image_is_not_found(http: httpx.Client, name: str) -> None:
    episode = open_episode(http)
    assert_problem(http.get(f"/episodes/{episode}/images/{name}"), 404)
    assert_problem(http.get(f"/episodes/..%2F{episode}/images/{name}"), 404)


def test_a_damaged_image_is_not_served(http: httpx.Client, daemon: Daemon) -> None:
    episode = open_episode(http)
    post(http, episode, step(0, camera=picture(0)))
    (path,) = (daemon.data_dir / "episodes" / f"{episode}.images").iterdir()
    path.write_bytes(picture(0)[:-1])
    assert_problem(http.get(f"/episodes/{episode}/images/{path.name}"), 500)


@pytest.mark.parametrize(
    ("part", "data", "status", "field"),
    [
        ("observation/camera", b"no image", 422, "observation/camera"),
        ("observation/camera", picture(0)[:-1], 422, "observation/camera"),
        ("camera", picture(0), 422, "camera"),
        ("steps/0/observation/camera", picture(0), 422, "steps/0/observation/camera"),
        ("observation/state", picture(0), 422, "observation/state"),
    ],
)
def test_a_wrong_part_is_named_and_nothing_is_written(
    http: httpx.Client, daemon: Daemon, part: str, data: bytes, status: int, field: str
) -> None:
    episode = open_episode(http)
    files: Files = {"step": (None, json.dumps(step(0))), part: ("x.png", data)}
    problem = assert_problem(http.post(f"/episodes/{episode}/steps", files=files), status)
    assert problem["field"] == field
    assert http.get(f"/episodes/{episode}").json()["steps"] == 0
    assert not (daemon.data_dir / "episodes" / f"{episode}.images").exists()


def test_an_image_over_its_limit_is_too_large(tmp_path: Path) -> None:
    env = {"BRAIN_CAPTURE__MAX_IMAGE_BYTES": "4096"}
    with running_daemon(tmp_path / "brain", env=env) as daemon, httpx.Client(base_url=daemon.url) as http:
        episode = open_episode(http)
        problem = assert_problem(post(http, episode, step(0, camera=picture(0, height=64, width=64))), 413)
        assert problem["field"] == "observation/camera"


def test_records_of_safety_and_share_are_shown_and_a_wrong_one_is_named(http: httpx.Client) -> None:
    records = {
        "safety": {"pii_cleared": True, "content_rating": {"audience": "general"}, "reviewer": "Ada"},
        "share": {"public": True, "license": "CC-BY-4.0", "tags": ["demo"]},
    }
    episode = open_episode(http, **records)
    metadata = http.get(f"/episodes/{episode}").json()["metadata"]
    assert {name: metadata[name] for name in records} == records
    problem = assert_problem(http.post("/episodes", json={"share": {"public": "yes"}}), 422)
    assert problem["field"] == "share/public"
    problem = assert_problem(http.post("/episodes", content=b'{"metadata":{"serial":123456789012345678901}}'), 422)
    assert problem["field"] == "metadata/serial"


def test_a_kill_loses_no_accepted_image(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "brain") as daemon:
        with httpx.Client(base_url=daemon.url) as http:
            episode = open_episode(http)
            for index in range(30):
                assert post(http, episode, step(index, camera=picture(index))).status_code == 200
            daemon.kill()
        daemon.start()
        with httpx.Client(base_url=daemon.url) as http:
            for index in (29, 30):
                assert post(http, episode, step(index, camera=picture(index))).json()["step_index"] == index
            found = references(http, episode)
            assert found == [image_reference(picture(index)) for index in range(31)]
            for index, reference in enumerate(found):
                assert http.get(f"/episodes/{episode}/{reference}").content == picture(index)


def test_a_robot_with_a_camera_learns_and_is_driven(taught: Daemon) -> None:
    dataset = open_dataset(taught.data_dir / "datasets")
    assert dataset.read("train", 0)["observation/camera"] == [picture(index) for index in range(20)]
    with httpx.Client(base_url=taught.url, timeout=30) as http:
        session = http.post("/sessions", json={}).json()["session_id"]
        recorded = open_episode(http)
        # The model sees no images: a controller may send one, to have it recorded, and need not.
        for index, seen in enumerate((observation(0), observation(1) | {"camera": camera(1)})):
            asked_for = {"session_id": session, "step": index, "observation": seen, "deadline_ms": 5000}
            answer = http.post("/infer", json=asked_for | ({"record": recorded} if index else {}))
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["action"]["command"]) == 2
        http.delete(f"/sessions/{session}").raise_for_status()
        http.post(f"/episodes/{recorded}/end", json={"reason": "truncated"}).raise_for_status()
        assert references(http, recorded) == [image_reference(picture(1))]
