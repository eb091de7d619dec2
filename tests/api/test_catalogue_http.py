"""The catalogue over HTTP: filters, cursors, times, sizes, and what a wrong query is told."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from brain_service.api.episode_query import parse_time_ns
from brain_service.client import BrainClient
from brain_service.errors import InvalidError
from tests.api.problems import assert_problem
from tests.processes import Daemon, running_daemon


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    env = {"BRAIN_CAPTURE__COMPRESS_AFTER_S": "0", "BRAIN_CAPTURE__MAX_PAGE_BYTES": "5000"}
    with (
        running_daemon(tmp_path_factory.mktemp("catalogue") / "brain", env=env) as daemon,
        httpx.Client(base_url=daemon.url, timeout=10) as client,
    ):
        yield client


def record(http: httpx.Client, steps: int = 3, end: str | None = "truncated", **body: Any) -> str:
    episode: str = http.post("/episodes", json=body).json()["episode_id"]
    batch = [
        {"step_index": n, "observation": {"x": [0.1 * n, 1.0]}, "action": {"a": 0.5}, "reward": 0.0}
        for n in range(steps)
    ]
    http.post(f"/episodes/{episode}/steps", json=batch).raise_for_status()
    if end:
        http.post(f"/episodes/{episode}/end", json={"reason": end}).raise_for_status()
    return episode


def listed(http: httpx.Client, **params: Any) -> list[str]:
    answer = http.get("/episodes", params=params)
    assert answer.status_code == 200, answer.text
    return [item["episode_id"] for item in answer.json()["episodes"]]


def test_filters_and_cursors(http: httpx.Client) -> None:
    made = [record(http, robot_id="r1", tags=["a", f"n{n}"], environment_id="filters") for n in range(5)]
    running = record(http, end=None, robot_id="r2", tags=["a"], environment_id="filters")
    assert listed(http, environment_id="filters") == [running, *made[::-1]]
    assert listed(http, environment_id="filters", state="open") == [running]
    assert listed(http, tag=["a", "n3"]) == [made[3]]
    assert listed(http, robot_id="r1", state="truncated", tag="a") == made[::-1]
    pages: list[str] = []
    cursor: str | None = None
    while True:
        params = {"robot_id": "r1", "limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = http.get("/episodes", params=params).json()
        pages += [item["episode_id"] for item in page["episodes"]]
        record(http, robot_id="r1x")
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert pages == made[::-1]


def test_times_are_nanoseconds_or_rfc_3339(http: httpx.Client) -> None:
    first = record(http, environment_id="times")
    created_ns = http.get(f"/episodes/{first}").json()["created_ns"]
    second = record(http, environment_id="times")
    assert listed(http, environment_id="times", created_after=created_ns) == [second]
    assert listed(http, environment_id="times", created_before=created_ns + 1) == [first]
    moment = datetime.fromtimestamp(created_ns / 1e9 + 3600, UTC)
    for text in (moment.isoformat(), f"{moment:%Y-%m-%dT%H:%M:%SZ}"):
        assert listed(http, environment_id="times", created_before=text) == [second, first]
        assert listed(http, environment_id="times", created_after=text) == []
    unescaped = f"/episodes?environment_id=times&created_before={moment:%Y-%m-%dT%H:%M:%S}+00:00"
    assert len(http.get(unescaped).json()["episodes"]) == 2


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"tags": "x"}, "tags"),
        ({"environment": "x"}, "environment"),
        ({"limit": "1001"}, "limit"),
        ({"state": "closed"}, "state"),
        ({"control_role": "boss"}, "control_role"),
        ({"cursor": "nonsense"}, "cursor"),
        ({"created_after": "yesterday"}, "created_after"),
        ({"created_before": "2026-11-22T20:15:00"}, "created_before"),
        ({"created_before": "2026-11-22"}, "created_before"),
    ],
)
def test_a_wrong_query_is_a_422_that_names_it(http: httpx.Client, query: dict[str, str], field: str) -> None:
    problem = assert_problem(http.get("/episodes", params=query), 422)
    assert field in problem["field"]


def test_an_unknown_name_gets_the_nearest_known_one(http: httpx.Client) -> None:
    problem = assert_problem(http.get("/episodes", params={"robotid": "r1"}), 422)
    assert "did you mean 'robot_id'" in problem["detail"]


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        ("0", 0),
        ("-5", -5),
        ("1795348800000000000", 1_795_348_800_000_000_000),
        ("2026-11-22T12:00:00Z", 1_795_348_800_000_000_000),
        ("2026-11-22T13:00:00.5+01:00", 1_795_348_800_500_000_000),
        ("2026-11-22T13:00:00 01:00", 1_795_348_800_000_000_000),
        ("1969-12-31T23:59:59Z", -1_000_000_000),
        ("1970-01-01t00:00:00.123456789z", 123_456_789),
        ("1969-12-31T23:59:59.1234567891Z", -876_543_211),
    ],
)
def test_a_time_in_either_form(text: str, expected_ns: int) -> None:
    assert parse_time_ns(text, "created_after") == expected_ns


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1.5",
        "1e9",
        "2026-13-01T00:00:00Z",
        "9" * 20,
        "２０",
        "007",
        "20260101T000000Z",
        "2026-W01-1T00:00:00Z",
    ],
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_time_ns(text, "created_after")


def test_a_closed_log_is_compressed_and_reads_as_before(http: httpx.Client) -> None:
    episode = record(http, 50)
    for _ in range(200):
        found = http.get(f"/episodes/{episode}").json()
        if found["compressed"]:
            break
        time.sleep(0.05)
    assert found["compressed"]
    assert (found["state"], found["steps"], found["converted"], found["uploaded"]) == (
        "truncated",
        50,
        False,
        False,
    )
    assert found["created_ns"] < found["ended_ns"]
    assert found["size_bytes"] > 0
    steps = http.get(f"/episodes/{episode}/steps", params={"start": 30, "limit": 5}).json()["steps"]
    assert [item["step_metadata"]["step_index"] for item in steps] == list(range(30, 35))
    assert_problem(
        http.post(f"/episodes/{episode}/steps", json={"observation": {"x": 1}, "action": {"a": 1}}), 409
    )
    assert http.delete(f"/episodes/{episode}").status_code == 204
    assert_problem(http.get(f"/episodes/{episode}"), 404)


def test_long_steps_come_in_shorter_pages_and_the_client_gets_them_all(http: httpx.Client) -> None:
    episode = record(http, 50)
    url = f"/episodes/{episode}/steps"
    first = http.get(url, params={"limit": 50})
    assert first.headers["content-type"] == "application/json"
    assert len(first.content) <= 5000 + 200
    page = first.json()
    assert (page["episode_id"], page["start"]) == (episode, 0)
    assert 1 < len(page["steps"]) < 50
    assert [item["step_metadata"]["step_index"] for item in page["steps"]] == list(range(len(page["steps"])))
    assert "crc32c" not in page["steps"][0]
    assert http.get(url, params={"start": 50}).json()["steps"] == []
    with BrainClient(str(http.base_url)) as client:
        indices = [item["step_metadata"]["step_index"] for item in client.steps(episode)]
    assert indices == list(range(50))


def test_health_tells_episodes_and_wear(http: httpx.Client) -> None:
    record(http, 20)
    checks = http.get("/health").json()["checks"]
    assert checks["wear"][0]["observed_unit"] == "MB/day"
    assert checks["episodes"][0]["observed_unit"] == "episodes"
    assert checks["episodes"][0]["status"] == "pass", checks["episodes"]


def test_a_damaged_database_does_not_stop_the_daemon(daemon: Daemon) -> None:
    with httpx.Client(base_url=daemon.url, timeout=10) as http:
        episode = record(http)
        daemon.stop()
        (daemon.data_dir / "brain.db").write_bytes(b"no database at all, not even one of the size of a page" * 100)
        daemon.start()
        assert listed(http) == [episode]
        assert http.get("/jobs").status_code == 200
