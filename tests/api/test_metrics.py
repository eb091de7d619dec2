"""`/metrics` and request ids on a real daemon with a model: what is counted, and what no label may ever hold."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect as connect_websocket

from tests.api.conftest import TOKENS, Driven, bearer, token
from tests.api.problems import assert_problem

SEEN = {"arm": {"joints": [0.5, -0.25]}, "load": 0.5}
BASE_UNITS = ("_seconds", "_bytes", "_celsius", "_total", "_info", "_per_day", "_per_second", "_per_core")


@pytest.fixture
def http(driven: Driven) -> Any:
    with httpx.Client(base_url=driven.url, headers=bearer("boss"), timeout=30) as client:
        yield client


def families(http: httpx.Client) -> dict[str, Any]:
    """Return the page's families by name, read by Prometheus' own parser."""
    answer = http.get("/metrics", headers=bearer("reader"))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def value(found: dict[str, Any], name: str, **labels: str) -> float:
    """Return the sum of the samples of one name that carry these labels."""
    family = found.get(re.sub(r"_(total|bucket|count|sum)$", "", name)) or found.get(name)
    samples = family.samples if family is not None else ()
    return float(sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items()))


def act(http: httpx.Client, steps: int, **fields: Any) -> list[str]:
    """Act for some steps in a session of its own; return the ids that came into being."""
    robot = bearer("robot")
    session: str = http.post("/sessions", json={}, headers=robot).json()["session_id"]
    episode: str = http.post("/episodes", json={}, headers=robot).json()["episode_id"]
    for step in range(steps):
        body = {"session_id": session, "step": step, "observation": SEEN, **fields}
        answer = http.post("/infer", content=json.dumps(body), headers=robot)
        assert answer.status_code == 200, answer.text
        body = {"observation": {"state": [0.1]}, "action": {"command": [0.5]}}
        http.post(f"/episodes/{episode}/steps", json=body, headers=robot).raise_for_status()
    http.post(f"/episodes/{episode}/end", json={}, headers=robot).raise_for_status()
    http.delete(f"/sessions/{session}", headers=robot).raise_for_status()
    return [session, episode]


def test_what_happens_is_counted(http: httpx.Client) -> None:
    before = families(http)
    act(http, 5)
    after = families(http)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    for part in ("queue", "compute", "total"):
        assert grown("brain_infer_duration_seconds_count", part=part) == 5
    assert grown("brain_infer_duration_seconds_sum", part="total") >= grown(
        "brain_infer_duration_seconds_sum", part="compute"
    )
    assert grown("brain_capture_steps_total") == 5
    assert grown("brain_capture_written_bytes_total") > 5 * 50
    assert grown("brain_http_request_duration_seconds_count", route="/infer", method="POST", status="2xx") == 5
    steps = "/episodes/{episode_id}/steps"
    assert grown("brain_http_request_duration_seconds_count", route=steps, status="2xx") == 5
    assert grown("brain_http_request_duration_seconds_count", route="/sessions/{session_id}", method="DELETE") == 1
    assert value(after, "brain_infer_ready") == 1
    assert value(after, "brain_model_info", role="active") == 1
    assert value(after, "brain_jobs", state="failed") == 0
    assert value(after, "brain_check_status", check="disk") == 0


@pytest.fixture(autouse=True, scope="module")
def as_found(driven: Driven) -> Iterator[None]:
    """Leave no session to the tests that come after these on the same daemon."""
    yield
    with httpx.Client(base_url=driven.url, headers=bearer("robot"), timeout=30) as client:
        for session in client.get("/sessions").json()["sessions"]:
            client.delete(f"/sessions/{session['session_id']}").raise_for_status()


def logged(driven: Driven) -> list[dict[str, Any]]:
    """Return the lines of the daemon's log."""
    return [json.loads(line) for line in driven.daemon.log_path.read_text().splitlines() if line.startswith("{")]


def test_a_line_of_the_log_names_request_session_and_model(driven: Driven, http: httpx.Client) -> None:
    robot = bearer("robot")
    session = http.post("/sessions", json={}, headers=robot).json()["session_id"]
    late = {"session_id": session, "observation": SEEN, "deadline_ms": 0.001}
    # The same trouble is written once in ten seconds, and another test may have had it just now.
    for attempt in range(15):
        asked = robot | {"X-Request-ID": f"late-{attempt}"}
        assert http.post("/infer", json=late, headers=asked).status_code == 504
        if lines := [line for line in logged(driven) if line.get("request_id") == f"late-{attempt}"]:
            break
        time.sleep(1)
    (failed,) = lines
    assert failed["session_id"] == session
    assert failed["model_id"] == driven.model_id
    assert failed["status"] == 504


def test_a_late_answer_and_a_refusal_are_counted_by_class(http: httpx.Client) -> None:
    before = families(http)
    session = http.post("/sessions", json={}, headers=bearer("robot")).json()["session_id"]
    late = {"session_id": session, "observation": SEEN, "deadline_ms": 0.001}
    answer = http.post("/infer", content=json.dumps(late), headers=bearer("robot"))
    assert_problem(answer, 504)
    assert (
        http.post("/infer", json={}, headers={"Authorization": "Bearer nobody-knows-this-0000"}).status_code == 401
    )
    after = families(http)
    for status in ("4xx", "5xx"):
        labels = {"route": "/infer", "status": status}
        name = "brain_http_request_duration_seconds_count"
        assert value(after, name, **labels) == value(before, name, **labels) + 1
    misses = "brain_infer_deadline_misses_total"
    assert value(after, misses) == value(before, misses) + 1


def test_no_label_holds_what_grows_with_use(http: httpx.Client) -> None:
    made = [name for _ in range(3) for name in act(http, 1)]
    families(http)
    first = families(http)
    made += [name for _ in range(4) for name in act(http, 1)]
    for number in range(30):
        http.get(f"/nowhere/{number}")
        http.get(f"/jobs/{number}")
        http.request("BREW" if number % 2 else "PURGE", f"/episodes/{number}")
        http.get("/livez", headers={"X-Request-ID": f"r-{number}"})
    families(http)
    last = families(http)

    def series(found: dict[str, Any]) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        return {(s.name, tuple(sorted(s.labels.items()))) for family in found.values() for s in family.samples}

    fresh = {labels for name, labels in series(last) - series(first) if not name.startswith("brain_http_")}
    assert fresh == set()
    routes = {s.labels["route"] for s in last["brain_http_request_duration_seconds"].samples}
    known = set(http.get("/openapi.json").json()["paths"]) | {"other", "/openapi.json"}
    assert routes <= known
    said = {text for _, labels in series(last) for _, text in labels}
    assert not {text for text in said for name in made if name in text}
    assert {s.labels["method"] for s in last["brain_http_request_duration_seconds"].samples} <= {
        *("GET", "POST", "DELETE", "other")
    }


def test_names_have_base_units_and_every_family_says_what_it_is(http: httpx.Client) -> None:
    found = families(http)
    for name, family in found.items():
        assert family.documentation.endswith("."), name
        assert family.type in ("gauge", "counter", "histogram"), name
        if family.type == "histogram":
            assert name.endswith("_seconds")
            assert min(float(s.labels["le"]) for s in family.samples if "le" in s.labels) == 1e-4
        assert not re.search(r"_(ms|us|ns|mb|kb|percent|minutes)$", name)
    assert sum(name.endswith(BASE_UNITS) for name in found) >= 15


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_promtool_finds_nothing_to_object_to(http: httpx.Client) -> None:
    page = http.get("/metrics").content
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True)
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()


def test_the_page_needs_a_token_where_there_are_tokens(driven: Driven) -> None:
    assert httpx.get(f"{driven.url}/metrics").status_code == 401
    assert httpx.get(f"{driven.url}/metrics", headers=bearer("robot")).status_code == 200


def test_open_websockets_are_counted_while_they_are_open(driven: Driven, http: httpx.Client) -> None:
    url = f"ws://127.0.0.1:{driven.daemon.port}/infer/stream"
    with connect_websocket(url, additional_headers=bearer("robot") | {"X-Request-ID": "ws-1"}) as stream:
        assert stream.response is not None
        assert stream.response.headers["x-request-id"] == "ws-1"
        assert value(families(http), "brain_http_websockets", route="/infer/stream") == 1
    for _ in range(50):
        if value(families(http), "brain_http_websockets", route="/infer/stream") == 0:
            break
    else:
        pytest.fail("a closed WebSocket still counts")


@pytest.mark.parametrize("path", ["/livez", "/nowhere", "/infer", "/episodes/none/steps"])
def test_an_id_comes_back_with_every_answer(http: httpx.Client, path: str) -> None:
    method = "GET" if path in ("/livez", "/nowhere") else "POST"
    given = http.request(method, path, headers={"X-Request-ID": "robot-7.step_42"}, content=b"{")
    assert given.headers["x-request-id"] == "robot-7.step_42"
    if given.status_code >= 400:
        assert given.json()["request_id"] == "robot-7.step_42"
    made = [http.request(method, path, content=b"{").headers["x-request-id"] for _ in range(2)]
    assert len(set(made)) == 2


@pytest.mark.parametrize("odd", ["a b", "x" * 129, 'a"b', "<script>", ""])
def test_an_id_that_is_none_is_replaced(http: httpx.Client, odd: str) -> None:
    found = http.get("/livez", headers={"X-Request-ID": odd}).headers["x-request-id"]
    assert found != odd
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9]+", found)


def test_no_line_of_the_log_holds_a_token(driven: Driven, http: httpx.Client) -> None:
    # Mistakes of clients that put their token where it does not belong.
    for name in TOKENS:
        secret, robot = token(name), bearer("robot")
        http.post(f"/episodes/{secret}/steps", content=b"{", headers=robot)
        http.post("/infer", json={"session_id": secret, "observation": {}}, headers=robot)
        http.get(f"/jobs/{secret}?token={secret}", headers=robot)
        http.get("/livez", headers={"X-Request-ID": secret})
        http.post(f"/models/{secret}/activate", headers=bearer("boss"))
    text = driven.daemon.log_path.read_text()
    assert text
    assert not [name for name in TOKENS if token(name) in text]
