"""The page over HTTP: headers and size, the snapshot and its stream, and who may change what from where."""

import concurrent.futures
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from brain_service.api.auth import scope_for
from brain_service.dashboard import ASSET_PATHS, load_assets
from brain_service.errors import ConfigError
from tests.processes import Daemon, running_daemon

BOSS, READER = "boss-token-0123456789", "reader-token-0123456789"
MAX_PAGE_BYTES = 150_000


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without tokens and without a model."""
    with running_daemon(tmp_path_factory.mktemp("plain") / "brain") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with tokens."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "tokens").write_text(f"{BOSS} operate\n{READER} read\n")
    with running_daemon(folder / "brain", env={"BRAIN_TOKENS_FILE": str(folder / "tokens")}) as daemon:
        yield daemon


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def frames(daemon: Daemon, count: int, headers: dict[str, str] | None = None) -> list[tuple[str, Any, float]]:
    """Return the first events of the stream: name, data, seconds since it was asked for."""
    found: list[tuple[str, Any, float]] = []
    began_s = time.monotonic()
    with httpx.stream("GET", f"{daemon.url}/status/stream", timeout=30, headers=headers or {}) as answer:
        assert answer.status_code == 200
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                found.append((name, json.loads(line[6:]), time.monotonic() - began_s))
                if len(found) == count:
                    break
    return found


# --- the files -------------------------------------------------------------------------------------------------


def test_the_page_is_light_and_all_its_own(plain: Daemon) -> None:
    total = 0
    for path in ASSET_PATHS:
        answer = httpx.get(plain.url + path)
        assert answer.status_code == 200, path
        total += len(answer.content)
        # The name of SVG is no address: nothing is loaded from it.
        assert "http" not in answer.text.replace("http://www.w3.org/2000/svg", ""), path
    assert 20_000 < total < MAX_PAGE_BYTES


def test_the_page_may_load_nothing_else_and_stands_in_no_frame(plain: Daemon) -> None:
    answer = httpx.get(plain.url + "/")
    policy = answer.headers["content-security-policy"]
    for rule in ("default-src 'self'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"):
        assert rule in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    for forbidden in ("<style", "style=", "onclick", "javascript:"):
        assert forbidden not in answer.text
    assert answer.text.count("<script") == 1


def test_a_known_file_is_not_sent_again(plain: Daemon) -> None:
    answer = httpx.get(plain.url + "/dashboard/app.js")
    again = httpx.get(plain.url + "/dashboard/app.js", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = httpx.head(plain.url + "/")
    assert head.status_code == 200
    assert head.content == b""


@pytest.mark.parametrize("name", ["none.js", "..%2f__init__.py", "__init__.py", "%00"])
def test_only_the_pages_own_files_are_served(plain: Daemon, name: str) -> None:
    answer = httpx.get(f"{plain.url}/dashboard/{name}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_missing_file_of_the_page_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"index\.html.*install"):
        load_assets(tmp_path)


def test_openpi_and_the_page_share_the_root(plain: Daemon) -> None:
    assert "text/html" in httpx.get(plain.url + "/").headers["content-type"]
    # Its handshake reaches openpi's code, which has no model to answer with.
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{plain.port}/", proxy=None).close()
    assert refused.value.response.status_code == 503
    assert httpx.post(plain.url + "/", json={}).status_code == 405


# --- the snapshot ----------------------------------------------------------------------------------------------


def test_the_status_holds_every_part_of_the_page(plain: Daemon) -> None:
    status = httpx.get(plain.url + "/status").json()
    assert status["state"]["word"] == "Idle"
    assert status["access"] == {"tokens": False, "scopes": ["control", "operate", "read"], "may_operate": True}
    parts = {
        "inference",
        "sessions",
        "capture",
        "jobs",
        "learning",
        "models",
        "machine",
        "health",
        "events",
        "about",
    }
    assert parts <= status.keys()
    assert status["inference"]["deadline_ms"] == 100.0
    assert status["events"][-1]["text"].startswith("the daemon started")


def test_the_stream_begins_with_everything_and_goes_on_with_changes_once_a_second(plain: Daemon) -> None:
    (first, access, _), (second, whole, _), *rest = frames(plain, 5)
    assert (first, second) == ("access", "snapshot")
    assert access["may_operate"]
    assert {name for name, _, _ in rest} == {"changes"}
    assert all("now_ns" in data and "models" not in data and "about" not in data for _, data, _ in rest)
    assert len(json.dumps(rest[-1][1])) < len(json.dumps(whole))
    assert rest[-1][2] - rest[0][2] >= 1.5  # three changes are two seconds


def test_all_viewers_together_cost_one_look_a_second(plain: Daemon) -> None:
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        seen = list(pool.map(lambda _: frames(plain, 5), range(6)))
    moments = {data["now_ns"] for viewer in seen for name, data, _ in viewer if name != "access"}
    lasted_s = max(viewer[-1][2] for viewer in seen)
    assert len(moments) <= lasted_s + 3, "six viewers of four looks each would be 24"


def test_what_happens_is_seen_within_seconds(plain: Daemon) -> None:
    episode = httpx.post(plain.url + "/episodes", json={}).json()["episode_id"]
    step = {"observation": {"state": [0.5]}, "action": {"command": [0.1]}}
    httpx.post(f"{plain.url}/episodes/{episode}/steps", json=step).raise_for_status()
    wait_for(plain, lambda s: s["state"]["word"] == "Recording" and s["capture"]["open_episodes"] == 1)
    httpx.post(f"{plain.url}/episodes/{episode}/end", json={}).raise_for_status()
    wait_for(plain, lambda s: s["state"]["word"] == "Idle")


def test_learning_is_paused_and_resumed(plain: Daemon) -> None:
    held = httpx.post(plain.url + "/jobs/pause", json={"reason": "a visitor is here"}).json()
    assert held["paused"]
    found = wait_for(plain, lambda s: s["state"]["word"] == "Paused")
    assert "a visitor is here" in found["state"]["reason"]
    assert found["learning"]["since_ns"] == held["since_ns"]
    assert not httpx.post(plain.url + "/jobs/resume").json()["paused"]
    found = wait_for(plain, lambda s: any(event["text"] == "learning goes on" for event in s["events"]))
    assert any(event["text"] == "learning is paused: a visitor is here" for event in found["events"])


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"[]", 422), (b"{", 400), (b'{"why": 1}', 422), (b'{"reason": "%s"}' % (b"x" * 201), 422)],
)
def test_a_wrong_pause_is_refused_and_pauses_nothing(plain: Daemon, body: bytes, status: int) -> None:
    answer = httpx.post(plain.url + "/jobs/pause", content=body)
    assert answer.status_code == status
    assert answer.json()["detail"]
    assert not httpx.get(plain.url + "/status").json()["learning"]["paused"]


def wait_for(daemon: Daemon, holds: Any, timeout_s: float = 20) -> dict[str, Any]:
    """Return the first snapshot that `holds`."""
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        status: dict[str, Any] = httpx.get(f"{daemon.url}/status").json()
        if holds(status):
            return status
        time.sleep(0.2)
    raise AssertionError(f"not within {timeout_s} s: {status['state']}")


# --- who may what, from where ----------------------------------------------------------------------------------


def test_the_page_needs_no_token_and_its_content_does(locked: Daemon) -> None:
    for path in ASSET_PATHS:
        assert httpx.get(locked.url + path).status_code == 200
        assert scope_for("POST", path) is not None
    for path in ("/status", "/status/stream"):
        assert httpx.get(locked.url + path).status_code == 401
        assert httpx.get(locked.url + path, headers=bearer("wrong-token-0123456789")).status_code == 401
    access = httpx.get(locked.url + "/status", headers=bearer(READER)).json()["access"]
    assert access == {"tokens": True, "scopes": ["read"], "may_operate": False}
    assert frames(locked, 1, bearer(BOSS))[0][1]["may_operate"]


@pytest.mark.parametrize("path", ["/jobs/pause", "/jobs/resume", "/models/rollback", "/train"])
def test_a_reader_looks_and_does_not_act(locked: Daemon, path: str) -> None:
    answer = httpx.post(locked.url + path, headers=bearer(READER), json={})
    assert answer.status_code == 403
    assert "operate" in answer.json()["detail"]


def test_a_stream_ends_when_its_token_is_taken_away(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{BOSS} operate\n{READER} read\n")
    with (
        running_daemon(tmp_path / "brain", env={"BRAIN_TOKENS_FILE": str(tokens)}) as daemon,
        httpx.stream("GET", f"{daemon.url}/status/stream", headers=bearer(READER), timeout=20) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        tokens.write_text(f"{BOSS} operate\n")
        began_s = time.monotonic()
        assert sum(1 for _ in lines) > 0
        assert time.monotonic() - began_s < 15


def test_viewers_hold_no_stop_up(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "brain") as daemon:
        with httpx.stream("GET", f"{daemon.url}/status/stream", timeout=20) as answer:
            next(answer.iter_raw())
            began_s = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began_s < 12
        told = [line for line in daemon.log_path.read_text().splitlines() if '"exception"' in line]
        assert told == []


CHANGES = [
    ("POST", "/jobs/pause"),
    ("POST", "/jobs/resume"),
    ("POST", "/models/rollback"),
    ("POST", "/models/x/activate"),
    ("POST", "/pipeline"),
    ("POST", "/train"),
    ("DELETE", "/jobs/x"),
    ("POST", "/sessions"),
    ("POST", "/infer"),
    ("POST", "/episodes"),
    ("DELETE", "/episodes/x"),
    ("POST", "/v2/models/brain/infer"),
]


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_a_page_of_another_site_changes_nothing(plain: Daemon, method: str, path: str) -> None:
    foreign: list[dict[str, str]] = [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://localhost:{plain.port + 1}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": plain.url, "Sec-Fetch-Site": "cross-site"},
    ]
    for headers in foreign:
        answer = httpx.request(method, plain.url + path, headers=headers, json={})
        assert answer.status_code == 403, headers
    form = {"Origin": plain.url, "Content-Type": "application/x-www-form-urlencoded"}
    assert httpx.request(method, plain.url + path, headers=form, content=b"a=b").status_code == 415
    assert (
        httpx.request(
            method, plain.url + path, headers={**form, "Content-Type": "text/plain; charset=utf-8"}
        ).status_code
        == 415
    )


def test_robots_curl_and_the_own_page_are_not_concerned(plain: Daemon) -> None:
    for headers in ({}, {"Origin": plain.url, "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
        assert httpx.post(plain.url + "/jobs/resume", headers=headers).status_code == 200
    # curl -d sends a form's media type, and no header of a browser.
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert httpx.post(plain.url + "/jobs/resume", headers=form, content=b"{}").status_code == 200


REBOUND = [
    "evil.example",
    "evil.example:8080",
    "127.0.0.1.evil.example",
    "brain.local.evil.example",
    "[::1",
    "a b",
]


@pytest.mark.parametrize("host", REBOUND)
def test_a_name_made_to_resolve_here_reads_and_changes_nothing(plain: Daemon, host: str) -> None:
    for method, path in (("GET", "/"), ("GET", "/status"), ("GET", "/episodes"), ("POST", "/jobs/resume")):
        answer = httpx.request(method, plain.url + path, headers={"Host": host})
        assert answer.status_code in (400, 403), path
    assert httpx.get(plain.url + "/livez", headers={"Host": "probe.example"}).status_code == 200


def test_every_name_of_this_machine_may_be_used(plain: Daemon) -> None:
    names = ["localhost", "127.0.0.1", "[::1]", "robot", "robot.local", "robot.lan", socket.gethostname().upper()]
    for name in names:
        for host in (name, f"{name}:{plain.port}"):
            assert httpx.get(plain.url + "/status", headers={"Host": host}).status_code == 200, host


def test_the_unix_socket_takes_any_name(plain: Daemon) -> None:
    transport = httpx.HTTPTransport(uds=str(plain.data_dir / "brain.sock"))
    with httpx.Client(transport=transport, base_url="http://what.ever.example") as http:
        assert http.get("/status").status_code == 200


def test_with_tokens_the_name_does_not_matter(locked: Daemon) -> None:
    headers = {"Host": "robot.example.com", **bearer(READER)}
    assert httpx.get(locked.url + "/status", headers=headers).status_code == 200
