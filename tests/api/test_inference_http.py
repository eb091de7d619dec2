"""`/sessions`, `/infer` and `/models` over real HTTP, on a model that the daemon trained itself."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.api.conftest import observation
from tests.api.problems import assert_problem
from tests.processes import Daemon, running_daemon


@pytest.fixture
def http(taught: Daemon) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=taught.url, timeout=10) as client:
        yield client


@pytest.fixture
def session(http: httpx.Client) -> Iterator[str]:
    answer = http.post("/sessions", json={})
    assert answer.status_code == 201
    session_id: str = answer.json()["session_id"]
    assert answer.headers["location"] == f"/sessions/{session_id}"
    yield session_id
    http.delete(f"/sessions/{session_id}")


def ask(session: str, step: int | None, **changes: Any) -> dict[str, Any]:
    body = {"session_id": session, "observation": observation(step or 0), "reward": 0.1, "deadline_ms": 5000}
    return body | ({} if step is None else {"step": step}) | changes


def infer(http: httpx.Client, session: str, step: int | None, **changes: Any) -> httpx.Response:
    return http.post("/infer", json=ask(session, step, **changes))


def test_an_action_comes_back_under_the_names_that_training_saw(http: httpx.Client, session: str) -> None:
    active = http.get("/models").json()["models"]
    answer = infer(http, session, 0)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert list(body["action"]) == ["command"]
    assert len(body["action"]["command"]) == 2
    assert body["step"] == 0
    assert body["model_id"] in {model["model_id"] for model in active}
    assert {"queue", "compute", "total"} <= body["timings_us"].keys()
    low, high = -1.001, 1.001  # the toy's commands stay within -1 to 1, and so does every answer
    assert all(low <= value <= high for value in body["action"]["command"])


def test_the_state_advances_once_per_answered_step(http: httpx.Client, session: str) -> None:
    first = [infer(http, session, step).json()["action"] for step in range(5)]
    assert infer(http, session, 4).json()["action"] == first[4]  # a repeat: the stored answer
    gap = assert_problem(infer(http, session, 7), 409)
    assert gap["next_step"] == 5
    assert assert_problem(infer(http, session, 2), 409)["next_step"] == 5
    assert http.get(f"/sessions/{session}").json()["next_step"] == 5
    assert http.post(f"/sessions/{session}/reset").json()["next_step"] == 0
    again = [infer(http, session, step).json()["action"] for step in range(5)]
    assert again == first, "the same inputs from the same state give the same actions"


def test_memory_makes_the_same_observation_mean_different_things(http: httpx.Client, session: str) -> None:
    fresh = infer(http, session, 0).json()["action"]
    later = [infer(http, session, step, observation=observation(0)).json()["action"] for step in range(1, 4)]
    assert any(action != fresh for action in later)


BAD_REQUESTS: list[tuple[dict[str, Any], int, str]] = [
    ({"observation": {"arm": {"joints": [1.0, 2.0]}, "holding": True}}, 422, "observation/arm/joints"),
    ({"observation": {"arm": {"joints": [1.0, 2.0, 3.0]}}}, 422, "observation/holding"),
    ({"observation": {**observation(0), "tail": [1.0]}}, 422, "observation/tail"),
    ({"observation": {"arm": {"joints": [1.0, None, 3.0]}, "holding": True}}, 422, "observation/arm/joints"),
    ({"observation": {"arm": {"joints": [1.0, 1e39, 3.0]}, "holding": True}}, 422, "observation/arm/joints"),
    ({"observation": [1.0]}, 422, "observation"),
    ({"reward": "much"}, 422, "reward"),
    ({"deadline_ms": -1}, 422, "deadline_ms"),
    ({"step": -1}, 422, "step"),
    ({"stepp": 1}, 422, "stepp"),
]


@pytest.mark.parametrize(("changes", "status", "field"), BAD_REQUESTS, ids=[case[2] for case in BAD_REQUESTS])
def test_a_wrong_request_changes_nothing_and_names_the_field(
    http: httpx.Client, session: str, changes: dict[str, Any], status: int, field: str
) -> None:
    infer(http, session, 0)
    problem = assert_problem(http.post("/infer", json=ask(session, 1) | changes), status)
    assert problem["field"] == field
    assert http.get(f"/sessions/{session}").json()["next_step"] == 1


def test_nan_is_not_json(http: httpx.Client, session: str) -> None:
    body = json.dumps(ask(session, 0, reward=float("nan")))
    assert_problem(http.post("/infer", content=body), 400)


def test_an_unknown_session_is_never_a_silent_zero_state(http: httpx.Client) -> None:
    assert_problem(infer(http, "none-such", 0), 409)
    assert_problem(http.get("/sessions/none-such"), 404)
    assert_problem(http.delete("/sessions/none-such"), 404)


def test_a_deadline_that_has_passed_is_a_504_and_leaves_the_state(http: httpx.Client, session: str) -> None:
    expected = [infer(http, session, step).json()["action"] for step in range(3)]
    http.post(f"/sessions/{session}/reset")
    infer(http, session, 0)
    late = assert_problem(infer(http, session, 1, deadline_ms=0.001), 504)
    assert late["next_step"] == 1
    assert [infer(http, session, step).json()["action"] for step in (1, 2)] == expected[1:]


def test_a_killed_worker_takes_no_state_along(taught: Daemon, http: httpx.Client, session: str) -> None:
    expected = [infer(http, session, step).json()["action"] for step in range(6)]
    http.post(f"/sessions/{session}/reset")
    actions = [infer(http, session, step).json()["action"] for step in range(3)]
    worker = http.get("/models").json()["models"][0]["serving"]["worker_pid"]
    assert worker in {child.pid for child in psutil.Process(taught.process.pid).children(recursive=True)}
    os.kill(worker, signal.SIGKILL)
    give_up = time.monotonic() + 60
    for step in range(3, 6):
        while (answer := infer(http, session, step)).status_code == 503:
            assert answer.json()["next_step"] == step
            assert time.monotonic() < give_up, "the worker did not come back"
            time.sleep(0.1)
        actions.append(answer.json()["action"])
    # The backend that stands in rounds otherwise; a state that was lost would show in the first digits.
    for action, wanted in zip(actions, expected, strict=True):
        assert action["command"] == pytest.approx(wanted["command"], abs=1e-4)


def test_what_the_policy_did_is_recorded_and_not_taken_for_an_expert(http: httpx.Client, session: str) -> None:
    episode = http.post("/episodes", json={"environment_id": "toy"}).json()["episode_id"]
    executed = {"command": [0.5, 0.5]}
    actions = []
    for step in range(4):
        extra = {"executed_action": executed} if step else {}
        actions.append(infer(http, session, step, reward=step / 10, record=episode, **extra).json()["action"])
    assert http.post(f"/episodes/{episode}/end", json={"reason": "truncated"}).json()["steps"] == 4
    steps = http.get(f"/episodes/{episode}/steps").json()["steps"]
    assert [step["action"] for step in steps] == actions
    # The reward of step t arrives with request t + 1; nobody told the last one.
    assert [step["reward"] for step in steps] == pytest.approx([0.1, 0.2, 0.3, 0.0])
    assert {step["step_metadata"]["control_role"] for step in steps} == {"policy"}
    assert steps[0]["step_metadata"]["policy"]["state_step"] == 0
    assert steps[0]["executed_action"] == executed
    assert "executed_action" not in steps[3] or steps[3]["executed_action"] is None


def test_the_last_step_of_an_evicted_session_is_recorded(taught: Daemon, tmp_path: Path) -> None:
    shutil.copytree(taught.data_dir / "models", tmp_path / "brain" / "models", symlinks=True)
    with (
        running_daemon(tmp_path / "brain", env={"BRAIN_INFERENCE__SESSION_IDLE_S": "0.5"}) as daemon,
        httpx.Client(base_url=daemon.url, timeout=10) as http,
    ):
        give_up = time.monotonic() + 60
        while http.get("/readyz", params={"for": "inference"}).status_code != 200:
            assert time.monotonic() < give_up, "the model was not loaded"
            time.sleep(0.05)
        episode = http.post("/episodes", json={"environment_id": "toy"}).json()["episode_id"]
        session = http.post("/sessions", json={}).json()["session_id"]
        assert infer(http, session, 0, record=episode).status_code == 200
        while not http.get(f"/episodes/{episode}/steps").json().get("steps"):
            assert time.monotonic() < give_up, "the step is held back for ever"
            time.sleep(0.05)


def test_models_are_listed_activated_and_rolled_back(http: httpx.Client) -> None:
    models = http.get("/models").json()["models"]
    model_id = models[0]["model_id"]
    assert http.get(f"/models/{model_id}").json()["model_id"] == model_id
    assert http.post(f"/models/{model_id}/activate").json() == {"model_id": model_id}
    assert_problem(http.get("/models/none-such"), 404)
    assert_problem(http.post("/models/none-such/activate"), 404)
    assert_problem(http.post("/models/rollback"), 409)  # there was only ever one


def test_ready_and_health_tell_that_a_model_serves(http: httpx.Client) -> None:
    assert http.get("/readyz", params={"for": "inference"}).status_code == 200
    health = http.get("/health").json()
    assert health["checks"]["inference"][0]["status"] in ("pass", "warn")
    for checks in health["checks"].values():
        assert {"status", "observed_value", "observed_unit", "output"} <= checks[0].keys()


def test_without_a_model_the_answer_is_503_and_says_what_to_do(daemon: Daemon) -> None:
    with httpx.Client(base_url=daemon.url) as http:
        assert "pipeline" in assert_problem(http.post("/sessions", json={}), 503)["detail"]
        assert_problem(http.get("/readyz", params={"for": "inference"}), 503)
        assert http.get("/readyz").status_code == 200
