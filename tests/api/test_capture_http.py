"""`POST /episodes/{id}/steps` and its neighbours under every kind of body, and under hostile ones."""

import concurrent.futures
import contextlib
import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import psutil
import pytest

from tests.api.problems import assert_problem
from tests.api.wire import STEP, assert_raw_problem, connect, read_answer, request_bytes, step_bytes
from tests.processes import Daemon, running_daemon

GIGABYTE = 10**9


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for the requests that leave no trace on one another: each opens its own episode."""
    with running_daemon(tmp_path_factory.mktemp("capture") / "brain") as running:
        yield running


@pytest.fixture
def http(daemon: Daemon) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=daemon.url, timeout=30) as client:
        yield client


def open_episode(http: httpx.Client, **body: Any) -> str:
    answer = http.post("/episodes", json=body)
    assert answer.status_code == 201, answer.text
    episode_id: str = answer.json()["episode_id"]
    return episode_id


def typed(*values: float) -> dict[str, Any]:
    data = np.array(values, np.float32).tobytes()
    return {"__ndarray__": True, "dtype": "<f4", "shape": [len(values)], "data": data}


TYPED_STEP = {**STEP, "observation": {"state": typed(0.1, -0.2, 0.3)}, "action": {"command": typed(0.5, 0.25)}}
BODIES = [
    ("application/json", step_bytes(0)),
    ("Application/JSON; charset=utf-8", step_bytes(0)),
    ("application/json", b"[%b]" % step_bytes(0)),
    ("application/x-www-form-urlencoded", step_bytes(0)),  # `curl -d` says so of any body
    ("application/x-ndjson", step_bytes(0) + b"\n"),
    ("application/jsonl", step_bytes(0)),
    ("application/msgpack", msgspec.msgpack.encode({**STEP, "step_index": 0})),
    ("application/msgpack", msgspec.msgpack.encode({**TYPED_STEP, "step_index": 0})),
    ("application/x-msgpack", msgspec.msgpack.encode([{**TYPED_STEP, "step_index": 0}])),
    (None, step_bytes(0)),
]


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_every_kind_of_body_records_the_same_step(daemon: Daemon, http: httpx.Client, unix: bool) -> None:
    records = []
    with connect(daemon, unix=unix) as wire:
        for kind, body in BODIES:
            episode = open_episode(http)
            headers = {} if kind is None else {"content_type": kind}
            wire.sendall(request_bytes(f"/episodes/{episode}/steps", body, **headers))
            status, answered, answer = read_answer(wire)
            assert (status, answered["content-type"]) == (200, "application/json"), (kind, answer)
            assert json.loads(answer).keys() == {"step_index", "durable_through"}
            step = http.get(f"/episodes/{episode}/steps").json()["steps"][0]
            records.append({name: step[name] for name in ("observation", "action", "reward", "is_terminal")})
            http.post(f"/episodes/{episode}/end")
    assert all(record == records[0] for record in records)
    assert records[0]["observation"] == {"state": [0.1, -0.2, 0.3]}


@pytest.mark.parametrize("kind", ["text/plain", "application/cbor", "image/png", "application/json2", "nonsense"])
def test_an_unknown_media_type_is_a_415_that_names_those_we_read(http: httpx.Client, kind: str) -> None:
    episode = open_episode(http)
    answer = http.post(f"/episodes/{episode}/steps", content=step_bytes(0), headers={"content-type": kind})
    assert "application/msgpack" in assert_problem(answer, 415)["detail"]
    assert http.get(f"/episodes/{episode}").json()["steps"] == 0


def test_a_gigabyte_is_refused_by_its_header_or_as_it_arrives(daemon: Daemon, http: httpx.Client) -> None:
    episode = open_episode(http)
    process = psutil.Process(daemon.process.pid)
    before = process.memory_info().rss
    with connect(daemon) as wire:
        head = request_bytes(f"/episodes/{episode}/steps").replace(b"Length: 0", b"Length: %d" % GIGABYTE)
        wire.sendall(head)
        problem = assert_raw_problem(read_answer(wire), 413)  # before one byte of the body is sent
        assert str(GIGABYTE) in problem["detail"]
    with connect(daemon) as wire:
        wire.sendall(b"POST /episodes/%b/steps HTTP/1.1\r\nHost: b\r\n" % episode.encode())
        wire.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b"[" * 2**20 + b"\r\n"
        sent = 0
        with contextlib.suppress(OSError):
            while sent < GIGABYTE:
                wire.sendall(chunk)
                sent += 2**20
        assert_raw_problem(read_answer(wire), 413)
        assert sent < GIGABYTE / 2, "nobody reads a gigabyte on"
    assert process.memory_info().rss - before < 64 * 2**20
    assert http.get(f"/episodes/{episode}").json()["steps"] == 0


def test_a_million_levels_of_nesting_are_the_callers_error(daemon: Daemon, http: httpx.Client) -> None:
    episode = open_episode(http)
    deep = b'{"a":' * 10**6 + b"1" + b"}" * 10**6
    packed = b"\x81\xa1a" * 10**6 + b"\x01"
    bodies = [
        (f"/episodes/{episode}/steps", deep, "application/json"),
        (f"/episodes/{episode}/steps", b"[" * 10**6 + b"]" * 10**6, "application/json"),
        (f"/episodes/{episode}/steps", b'{"observation":%b,"action":{"c":1}}' % deep, "application/json"),
        (f"/episodes/{episode}/steps", deep, "application/x-ndjson"),
        (f"/episodes/{episode}/steps", packed, "application/msgpack"),
        (f"/episodes/{episode}/steps", b"\x91" * 10**6 + b"\xc0", "application/msgpack"),
        (f"/episodes/{episode}/end", b'{"final_observation":%b}' % deep[: 4 * 10**5], "application/json"),
        ("/episodes", deep[: 4 * 10**5], "application/json"),
    ]
    for path, body, kind in bodies:
        answer = http.post(path, content=body, headers={"content-type": kind})
        assert answer.status_code in (400, 413, 422), (path, kind, answer.text[:200])
        assert_problem(answer, answer.status_code)
    assert daemon.process.poll() is None
    assert http.post(f"/episodes/{episode}/steps", content=step_bytes(0)).status_code == 200


TRICKS = [
    "/episodes/../../etc/passwd/steps",
    "/episodes/%2e%2e/steps",
    "/episodes/..%2f..%2fetc/steps",
    "/episodes/%2e%2e%2f%2e%2e%2fetc%2fpasswd/steps",
    "/episodes/a%00b/steps",
    "/episodes/%00/steps",
    "/episodes/a%0a/steps",
    "/episodes/a/steps%0a",
    "/episodes/%ff%fe/steps",
    "/episodes/.writable/steps",
    "/episodes/.hidden/steps",
    "/episodes/" + "a" * 300 + "/steps",
    "/episodes/" + "a" * 30_000 + "/steps",
    "/episodes//steps",
    "//episodes/a/steps",
    "/episodes/a/steps/",
    "/episodes/a//steps",
    "/episodes/C:\\con/steps",
]


def logs(daemon: Daemon) -> list[Path]:
    """Every log below the data directory, but those in which the daemon tells of requests and events."""
    told = ("audit.jsonl", "events.jsonl")
    return sorted(path for path in daemon.data_dir.rglob("*.jsonl*") if path.name not in told)


@pytest.mark.parametrize("path", TRICKS, ids=[path[:40] for path in TRICKS])
def test_a_path_trick_reaches_no_file(daemon: Daemon, path: str) -> None:
    before = logs(daemon)
    with connect(daemon) as wire:
        for method, ending in (("POST", ""), ("GET", ""), ("DELETE", "/steps")):
            wire.sendall(request_bytes(path.removesuffix(ending), step_bytes(0), method))
            status, headers, body = read_answer(wire)
            if status in (307, 405):  # a redirect to the plain path, or no such method on a shorter path
                continue
            assert status in (400, 404), (method, status, body)
            assert_raw_problem((status, headers, body), status)
    assert logs(daemon) == before


def test_an_episode_id_is_taken_once(http: httpx.Client) -> None:
    name = "robot-7.run-1"
    assert open_episode(http, episode_id=name) == name
    assert_problem(http.post("/episodes", json={"episode_id": name, "tags": ["another"]}), 409)
    for bad in ("../x", "a/b", ".a", "", "a" * 200, "a\u0000", "ü"):
        assert_problem(http.post("/episodes", json={"episode_id": bad}), 422, "episode_id")


def test_one_idempotency_key_creates_one_episode(http: httpx.Client) -> None:
    body, headers = {"tags": ["a"]}, {"Idempotency-Key": "run-1"}

    def create() -> tuple[int, str]:
        answer = httpx.post(f"{http.base_url}/episodes", json=body, headers=headers, timeout=30)
        assert answer.headers["location"].endswith(answer.json()["episode_id"])
        return answer.status_code, answer.json()["episode_id"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = {future.result() for future in [pool.submit(create) for _ in range(8)]}
    assert len(answers) == 1
    assert next(iter(answers))[0] == 201
    assert_problem(http.post("/episodes", json={"tags": ["b"]}, headers=headers), 409)
    assert (
        http.post("/episodes", json=body, headers={"Idempotency-Key": "run-2"}).json()["episode_id"] != create()[1]
    )
    for bad in ("", "x" * 256):
        assert_problem(http.post("/episodes", json=body, headers={"Idempotency-Key": bad}), 422)


def test_a_page_of_another_host_changes_nothing(daemon: Daemon, http: httpx.Client) -> None:
    episode = open_episode(http)
    for origin in ("http://evil.example", "null", f"http://evil.example:{daemon.port}", "http://127.0.0.1:1"):
        answer = http.post(f"/episodes/{episode}/steps", content=step_bytes(0), headers={"Origin": origin})
        assert_problem(answer, 403)
    rebound = {"Origin": f"http://evil.example:{daemon.port}", "Host": f"evil.example:{daemon.port}"}
    assert_problem(http.post(f"/episodes/{episode}/steps", content=step_bytes(0), headers=rebound), 403)
    own = {"Origin": f"http://127.0.0.1:{daemon.port}"}
    assert http.post(f"/episodes/{episode}/steps", content=step_bytes(0), headers=own).status_code == 200


def test_over_the_rate_it_is_a_429_that_says_when(tmp_path: Path) -> None:
    env = {"BRAIN_CAPTURE__MAX_STEPS_PER_S": "50", "BRAIN_CAPTURE__MAX_BATCH_STEPS": "20"}
    with (
        running_daemon(tmp_path / "brain", env=env) as slow,
        httpx.Client(base_url=slow.url, timeout=30) as http,
    ):
        episode, other = open_episode(http), open_episode(http)
        refused = None
        for index in range(200):
            answer = http.post(f"/episodes/{episode}/steps", content=step_bytes(index))
            if answer.status_code != 200:
                refused = index, answer
                break
        assert refused is not None
        index, answer = refused
        problem = assert_problem(answer, 429)
        assert 0 < problem["retry_after_s"] < 2
        assert int(answer.headers["retry-after"]) >= problem["retry_after_s"]
        assert http.post(f"/episodes/{episode}/steps", content=step_bytes(0)).status_code == 200, "a retry is free"
        assert http.post(f"/episodes/{other}/steps", content=step_bytes(0)).status_code == 200
        time.sleep(problem["retry_after_s"])
        assert http.post(f"/episodes/{episode}/steps", content=step_bytes(index)).status_code == 200


def test_bodies_that_arrive_slowly_hold_a_bounded_memory(tmp_path: Path) -> None:
    env = {"BRAIN_CAPTURE__MAX_QUEUED_BYTES": "4000000"}
    with (
        running_daemon(tmp_path / "brain", env=env) as small,
        httpx.Client(base_url=small.url, timeout=30) as http,
        contextlib.ExitStack() as stack,
    ):
        episode = open_episode(http)
        slow = [stack.enter_context(connect(small)) for _ in range(5)]
        for wire in slow[:4]:
            wire.sendall(request_bytes(f"/episodes/{episode}/steps", b" " * 900_100)[:-100])
        time.sleep(0.2)
        slow[4].sendall(request_bytes(f"/episodes/{episode}/steps", b" " * 900_100)[:-100])
        refused = read_answer(slow[4])
        assert assert_raw_problem(refused, 503)["retry_after_s"] > 0
        assert "retry-after" in refused[1]
        assert http.post(f"/episodes/{episode}/steps", content=step_bytes(0)).status_code == 200
        slow[0].sendall(b" " * 100)
        assert_raw_problem(read_answer(slow[0]), 400)


def test_a_wrong_method_names_the_right_ones(http: httpx.Client) -> None:
    answer = http.put("/episodes/x/steps", content=b"{}")
    assert_problem(answer, 405)
    assert answer.headers["allow"] == "GET, POST"


def test_a_compressed_body_is_refused_as_such(http: httpx.Client) -> None:
    episode = open_episode(http)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = http.post(f"/episodes/{episode}/steps", content=gzip.compress(b"{}"), headers=headers)
    assert "uncompressed" in assert_problem(answer, 415)["detail"]
