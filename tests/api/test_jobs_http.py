"""Jobs over real HTTP: asked for, followed, cancelled, refused; and still there after a restart."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.conftest import record_episodes
from tests.api.problems import assert_problem
from tests.jobs_http import wait_for_job
from tests.processes import Daemon


@pytest.fixture
def http(taught: Daemon) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=taught.url, timeout=120) as client:
        yield client


def test_a_pipeline_reports_its_stages_and_what_it_made(http: httpx.Client) -> None:
    job = http.get("/jobs", params={"kind": "pipeline"}).json()["jobs"][-1]
    assert job["state"] == "succeeded"
    assert job["progress"] == 1.0
    assert job["error"] is None
    names = [stage["name"] for stage in job["stages"]]
    assert names == ["health", "inventory", "convert", "train", "evaluate", "export", "canary", "activate"]
    assert {stage["status"] for stage in job["stages"]} == {"done"}
    served = {model["model_id"] for model in http.get("/models").json()["models"]}
    assert job["result"]["model_id"] in served
    assert http.get("/train").json()["job_id"] == job["job_id"]


def test_a_job_is_answered_at_once_and_followed_by_events(taught: Daemon, http: httpx.Client) -> None:
    answer = http.post("/convert", json={})
    assert answer.status_code == 202
    location = answer.headers["location"]
    assert location == f"/jobs/{answer.json()['job_id']}"
    names, last = [], {}
    with http.stream("GET", f"{location}/events", timeout=60) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
            if line.startswith("data: "):
                last = json.loads(line.removeprefix("data: "))
    assert names[-1] == "end"
    assert len(names) > 1
    assert last["state"] == "succeeded"
    assert wait_for_job(taught.url + location)["result"]
    assert http.get(f"{location}/log").headers["content-type"].startswith("text/plain")


def test_an_event_stream_goes_on_where_it_was_cut(taught: Daemon, http: httpx.Client) -> None:
    location = http.post("/convert", json={}).headers["location"]
    wait_for_job(taught.url + location)

    def events(after: str | None) -> list[tuple[str, str]]:
        headers = {"Last-Event-ID": after} if after else {}
        lines = http.get(f"{location}/events", headers=headers).text.splitlines()
        ids = [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]
        return list(zip(ids, [line for line in lines if line.startswith("data: ")], strict=True))

    whole = events(None)
    assert len(whole) >= 3
    assert events(whole[1][0]) == whole[2:]
    assert_problem(http.get(f"{location}/events", headers={"Last-Event-ID": "x"}), 422)


BAD_BODIES: list[tuple[str, dict[str, Any], str]] = [
    ("pipeline", {"preset": "huge"}, "preset"),
    ("pipeline", {"steps": -1}, "steps"),
    ("train", {"colour": "red"}, "colour"),
    ("train", {"learning_rate": "fast"}, "learning_rate"),
    ("train", {"dataset": "../../etc"}, "dataset"),
    ("convert", {"profile": "none"}, "profile"),
    ("sanity-check", {"max_steps": 1}, "max_steps"),
    ("export", {"checkpoint": "/etc/passwd"}, "checkpoint"),
]


@pytest.mark.parametrize(("kind", "body", "field"), BAD_BODIES)
def test_a_wrong_body_is_refused_before_any_job(
    http: httpx.Client, kind: str, body: dict[str, Any], field: str
) -> None:
    before = http.get("/jobs").json()["jobs"][0]["job_id"]
    assert assert_problem(http.post(f"/{kind}", json=body), 422)["field"] == field
    assert http.get("/jobs").json()["jobs"][0]["job_id"] == before


def test_a_sanity_check_says_what_does_not_fit_with_its_report(taught: Daemon, http: httpx.Client) -> None:
    location = http.post("/sanity-check", json={"dataset": "episodes", "obs_dim": 4099}).headers["location"]
    job = wait_for_job(taught.url + location)
    assert job["state"] == "failed"
    assert "--obs-dim is 4099, the dataset has" in job["error"]["detail"]
    assert job["error"]["report"]["passed"] is False


def test_what_is_no_object_is_refused(http: httpx.Client) -> None:
    assert_problem(http.post("/pipeline", content=b"{"), 400)
    assert_problem(http.post("/pipeline", json=[1]), 422)
    assert_problem(http.get("/jobs/none-such"), 404)
    assert_problem(http.get("/jobs/none-such/events"), 404)
    assert_problem(http.get("/jobs/none-such/log"), 404)
    assert_problem(http.delete("/jobs/none-such"), 404)
    assert_problem(http.get("/jobs", params={"kind": "dance"}), 422)


def test_the_same_key_is_the_same_job(http: httpx.Client) -> None:
    headers = {"Idempotency-Key": "once"}
    first = http.post("/convert", json={}, headers=headers).json()["job_id"]
    assert http.post("/convert", json={}, headers=headers).json()["job_id"] == first
    assert_problem(http.post("/convert", json={"name": "other"}, headers=headers), 422)


def test_with_nothing_recorded_the_pipeline_says_so(daemon: Daemon) -> None:
    with httpx.Client(base_url=daemon.url, timeout=120) as http:
        assert_problem(http.get("/train"), 404)
        location = http.post("/pipeline", json={}).headers["location"]
        job = wait_for_job(daemon.url + location, timeout_s=60)
        assert job["state"] == "failed"
        assert job["error"]["status"] < 500
        assert "episode" in job["error"]["detail"]
        assert "Traceback" not in json.dumps(job)


@pytest.mark.slow
@pytest.mark.long
def test_a_training_is_cancelled_and_jobs_survive_a_kill(daemon: Daemon) -> None:
    record_episodes(daemon.url, 3)
    with httpx.Client(base_url=daemon.url, timeout=120) as http:
        body = {"steps": 100_000, "batch_size": 2, "sequence_length": 8}
        long = http.post("/train", json=body).headers["location"]
        before = wait_until_training(http, long, beyond=0.0)
        daemon.kill()
        daemon.start()
        wait_until_training(http, long, beyond=before)
        assert http.delete(long).status_code == 202
        assert wait_for_job(daemon.url + long, timeout_s=30)["state"] == "cancelled"
        short = http.post("/convert", json={}).headers["location"]
        assert wait_for_job(daemon.url + short, timeout_s=60)["state"] == "succeeded"


def wait_until_training(http: httpx.Client, location: str, beyond: float) -> float:
    """Return the job's progress once its train stage has brought it beyond a share of the whole."""
    give_up = time.monotonic() + 200
    while time.monotonic() < give_up:
        job = http.get(location).json()
        assert job["state"] in ("queued", "running"), job
        stages = {stage["name"]: stage["status"] for stage in job["stages"]}
        if stages.get("train") == "running" and job["progress"] > beyond:
            progress: float = job["progress"]
            return progress
        time.sleep(0.2)
    raise TimeoutError(f"{location} did not get beyond {beyond}")
