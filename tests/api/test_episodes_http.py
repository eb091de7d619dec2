"""`/episodes` as a robot's controller meets it: a daemon in its own process, real HTTP, real kills."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.problems import assert_problem
from tests.processes import Daemon, running_daemon


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for the requests that leave no trace on one another: each opens its own episode."""
    with running_daemon(tmp_path_factory.mktemp("http") / "brain") as running:
        yield running


@pytest.fixture
def http(daemon: Daemon) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=daemon.url, timeout=10) as client:
        yield client


def step(index: int, **changes: Any) -> dict[str, Any]:
    """A step of a robot with three joints and a gripper."""
    return {
        "step_index": index,
        "observation": {"state": [0.1 * index, -0.2, 0.3]},
        "action": {"command": [0.5, index / 7]},
        "reward": 0.5,
        "is_terminal": False,
        **changes,
    }


def open_episode(http: httpx.Client, **body: Any) -> str:
    answer = http.post("/episodes", json={"environment_id": "pi5-dev", "xr_mode": "trainer", "tags": [], **body})
    assert answer.status_code == 201
    episode_id: str = answer.json()["episode_id"]
    assert answer.headers["location"] == f"/episodes/{episode_id}"
    return episode_id


def test_an_episode_from_first_step_to_end(http: httpx.Client, daemon: Daemon) -> None:
    episode = open_episode(http)
    first = http.post(f"/episodes/{episode}/steps", json=step(0))
    assert first.status_code == 200
    assert first.json()["step_index"] == 0
    assert first.json()["durable_through"] in (-1, 0)
    assert http.post(f"/episodes/{episode}/steps", json=[step(1), step(2)]).json()["step_index"] == 2
    lines = "\n".join(json.dumps(step(i)) for i in (3, 4)) + "\n"
    ndjson = http.post(
        f"/episodes/{episode}/steps", content=lines, headers={"content-type": "application/x-ndjson"}
    )
    assert ndjson.json()["step_index"] == 4
    ended = http.post(f"/episodes/{episode}/end", json={"reason": "terminated"})
    assert ended.json() == {"steps": 5, "durable_through": 4}

    summary = http.get(f"/episodes/{episode}").json()
    assert (summary["state"], summary["steps"]) == ("terminated", 5)
    read = http.get(f"/episodes/{episode}/steps", params={"start": 3, "limit": 10}).json()["steps"]
    assert [s["step_metadata"]["step_index"] for s in read] == [3, 4]
    assert read[0]["observation"]["state"] == pytest.approx([0.3, -0.2, 0.3])
    listed = http.get("/episodes", params={"limit": 1000}).json()["episodes"]
    assert episode in {item["episode_id"] for item in listed}
    assert (daemon.data_dir / "episodes" / f"{episode}.jsonl").is_file()


def test_pages_of_the_list_hold_every_episode_once(http: httpx.Client) -> None:
    wanted = {open_episode(http) for _ in range(5)}
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = http.get("/episodes", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [item["episode_id"] for item in page["episodes"]]
        cursor = page["next_cursor"]
        if not cursor:
            break
    assert len(seen) == len(set(seen))
    assert wanted <= set(seen)
    for episode in wanted:
        http.post(f"/episodes/{episode}/end", json={"reason": "truncated"})


def test_a_retry_gets_the_same_answer_and_another_body_a_conflict(http: httpx.Client) -> None:
    episode = open_episode(http)
    for _ in range(2):
        assert http.post(f"/episodes/{episode}/steps", json=step(0)).json()["step_index"] == 0
    assert_problem(http.post(f"/episodes/{episode}/steps", json=step(0, reward=0.75)), 409)
    gap = assert_problem(http.post(f"/episodes/{episode}/steps", json=step(2)), 409)
    assert gap["next_step_index"] == 1
    assert http.get(f"/episodes/{episode}").json()["steps"] == 1


BAD_STEPS = [
    (step(0, observation={"state": [0.1, 0.2]}), "observation/state"),
    (step(0, observation={"stat": [0.1, 0.2, 0.3]}), "observation/stat"),
    (step(0, observation={"state": [0.1, None, 0.3]}), "observation/state"),
    (step(0, observation={"state": [0.1, 1e39, 0.3]}), "observation/state"),
    (step(0, observation={"state": "up"}), "observation/state"),
    (step(0, observation=[0.1, 0.2, 0.3]), "observation"),
    (step(0, action={"command": [0.5, [1]]}), "action/command"),
    (step(0, action={}), "action"),
    (step(0, reward="high"), "reward"),
    (step(0, is_terminal=1), "is_terminal"),
    (step(0, control_role="boss"), "control_role"),
    (step(0, colour="red"), "colour"),
    ({"step_index": 0, "observation": {"state": [0.1, 0.2, 0.3]}}, "action"),
]


@pytest.mark.parametrize(("bad", "field"), BAD_STEPS, ids=[field for _, field in BAD_STEPS])
def test_a_wrong_step_is_a_422_that_names_the_field_and_writes_nothing(
    http: httpx.Client, bad: dict[str, Any], field: str
) -> None:
    features = {
        "observation": {"state": {"dtype": "float32", "shape": [3]}},
        "action": {"command": {"dtype": "float32", "shape": [2]}},
    }
    episode = open_episode(http, features=features)
    problem = assert_problem(http.post(f"/episodes/{episode}/steps", json=bad), 422)
    assert problem["field"].endswith(field), problem
    assert http.get(f"/episodes/{episode}").json()["steps"] == 0


def test_one_wrong_step_refuses_its_whole_batch(http: httpx.Client) -> None:
    episode = open_episode(http)
    batch = [step(0), step(1), step(2, observation={"state": [1.0]})]
    problem = assert_problem(http.post(f"/episodes/{episode}/steps", json=batch), 422)
    assert "2" in problem["field"]
    assert http.get(f"/episodes/{episode}").json()["steps"] == 0


@pytest.mark.parametrize(
    "body", ['{"step_index": 0', "", "nonsense", '{"reward": NaN}', '{"reward": -Infinity}', "\xff\xfe"]
)
def test_what_is_not_json_is_a_400(http: httpx.Client, body: str) -> None:
    episode = open_episode(http)
    assert_problem(http.post(f"/episodes/{episode}/steps", content=body.encode("latin-1")), 400)


def test_unknown_and_ended_episodes_are_told_apart(http: httpx.Client) -> None:
    assert_problem(http.post("/episodes/none-such/steps", json=step(0)), 404)
    assert_problem(http.get("/episodes/none-such"), 404)
    assert_problem(http.get("/episodes/..%2f..%2fetc%2fpasswd"), 404)
    episode = open_episode(http)
    http.post(f"/episodes/{episode}/steps", json=step(0))
    for _ in range(2):
        assert http.post(f"/episodes/{episode}/end", json={"reason": "truncated"}).json()["steps"] == 1
    assert_problem(http.post(f"/episodes/{episode}/steps", json=step(1)), 409)
    assert_problem(http.post(f"/episodes/{episode}/end", json={"reason": "terminated"}), 409)
    assert http.delete(f"/episodes/{episode}").status_code == 204
    assert_problem(http.get(f"/episodes/{episode}"), 404)


def test_a_body_over_the_limit_is_a_413(tmp_path: Path) -> None:
    with (
        running_daemon(tmp_path / "brain", env={"BRAIN_CAPTURE__MAX_BODY_BYTES": "2000"}) as small,
        httpx.Client(base_url=small.url) as http,
    ):
        episode = open_episode(http)
        assert_problem(http.post(f"/episodes/{episode}/steps", json=[step(i) for i in range(50)]), 413)
        chunks = (json.dumps(step(i)).encode() + b"\n" for i in range(50))  # no Content-Length
        assert_problem(http.post(f"/episodes/{episode}/steps", content=chunks), 413)
        assert http.post(f"/episodes/{episode}/steps", json=step(0)).status_code == 200


def test_paths_and_methods_that_do_not_exist_are_problems_too(http: httpx.Client) -> None:
    assert_problem(http.get("/episode"), 404)
    assert_problem(http.put("/episodes"), 405)
    assert_problem(http.get("/episodes", params={"limit": 0}), 422, "limit")


def test_a_kill_loses_no_accepted_step_and_the_robot_goes_on(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "brain").start()
    with httpx.Client(base_url=daemon.url, timeout=10) as http:
        episode = open_episode(http)
        for index in range(200):
            assert http.post(f"/episodes/{episode}/steps", json=step(index)).status_code == 200
        daemon.kill()
        daemon.start()
        for index in range(199, 230):  # a controller resends the step whose answer it may have missed
            assert http.post(f"/episodes/{episode}/steps", json=step(index)).json()["step_index"] == index
        ended = http.post(f"/episodes/{episode}/end", json={"reason": "truncated"}).json()
        assert ended == {"steps": 230, "durable_through": 229}
        steps = http.get(f"/episodes/{episode}/steps", params={"limit": 1000}).json()["steps"]
    assert [s["step_metadata"]["step_index"] for s in steps] == list(range(230))
    assert daemon.stop() == 0


def test_only_steps_come_in_bulk(http: httpx.Client) -> None:
    episode = open_episode(http)
    body = b'{"metadata":{"x":"' + b"a" * (5 * 1024**2) + b'"}}'
    for path in ("/episodes", f"/episodes/{episode}/end", "/infer", "/sessions", "/convert"):
        assert_problem(http.post(path, content=body), 413)


@pytest.mark.parametrize("start", [2**63 - 1, 10**23])
def test_a_start_beyond_any_episode_is_named(http: httpx.Client, start: int) -> None:
    episode = open_episode(http)
    http.post(f"/episodes/{episode}/steps", json=step(0))
    assert_problem(http.get(f"/episodes/{episode}/steps", params={"start": start}), 422, "start")
    http.post(f"/episodes/{episode}/end")
    assert_problem(http.get(f"/episodes/{episode}/steps", params={"start": start}), 422, "start")


def test_deep_nesting_is_the_callers_error(http: httpx.Client) -> None:
    deep = '{"a":' * 1005 + "1" + "}" * 1005
    features = f'{{"features":{{"observation":{deep},"action":{{"c":{{"dtype":"float32"}}}}}}}}'
    episode = open_episode(http)
    for path, body in (("/episodes", features), (f"/episodes/{episode}/end", f'{{"final_observation":{deep}}}')):
        answer = http.post(path, content=body)
        # How deep the parser goes differs between Pythons: past it the body is malformed, before it invalid.
        assert answer.status_code in (400, 422)
        assert_problem(answer, answer.status_code)
