"""`trainer` of `POST /train` and `/pipeline`: chosen by what the runtimes do, answered with why, and kept."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from tests.api.problems import assert_problem
from tests.api.wire import STEP
from tests.hardware.runtimes import CUDA_TORCH, GOOD_TORCH, Robot, jax_on
from tests.jobs.running import wait_until
from tests.processes import running_daemon


@pytest.fixture
def robot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Robot:
    before = os.environ.get("PYTHONPATH", "")
    found = Robot(tmp_path / "robot", monkeypatch)
    found.install("jax", jax_on("cpu"))
    # The daemon itself is found as before.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], before]))
    return found


@contextmanager
def client(folder: Path, **env: str) -> Iterator[httpx.Client]:
    with (
        running_daemon(folder / "brain", env=env) as daemon,
        httpx.Client(base_url=daemon.url, timeout=180) as http,
    ):
        yield http


def as_documented(http: httpx.Client, answer: httpx.Response, method: str, path: str) -> dict[str, Any]:
    """Return the body of an answer after checking it against the OpenAPI document."""
    operation = http.get("/openapi.json").json()["paths"][path][method]
    schema = operation["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
    assert {"trainer", "trainers"} & set(schema["properties"])
    body: dict[str, Any] = answer.json()
    Draft202012Validator(schema).validate(body)
    return body


def test_the_choice_is_answered_and_outlives_the_daemon(robot: Robot, tmp_path: Path) -> None:
    robot.install("torch", GOOD_TORCH)
    with client(tmp_path) as http:
        http.get("/hardware")  # waits for the runtimes, as a POST does for two seconds only
        auto = as_documented(http, http.post("/pipeline", json={}), "post", "/pipeline")["trainer"]
        assert auto["trainer"] == "jax" and auto["reason"].startswith("JAX is preferred")
        assert [option["trainer"] for option in auto["alternatives"]] == ["pytorch"]
        assert auto["alternatives"][0]["available"] and "2.13.0+fake" in auto["alternatives"][0]["reason"]
        hardware = as_documented(http, http.get("/hardware"), "get", "/hardware")
        assert hardware["trainers"] == auto
        forced = as_documented(http, http.post("/train", json={"trainer": "pytorch"}), "post", "/train")
        assert forced["trainer"]["trainer"] == "pytorch" and "asked for" in forced["trainer"]["reason"]
        assert forced["params"]["trainer"] == "pytorch"
        assert http.post("/convert", json={}).json()["trainer"] is None
    assert robot.imports("torch") == 1

    robot.install("torch", CUDA_TORCH)
    (tmp_path / "elsewhere").mkdir()
    with client(tmp_path, BRAIN_LEARNING__PREFER_JAX="false", BRAIN_CACHE_DIR=str(tmp_path / "elsewhere")) as http:
        http.get("/hardware")
        kept = as_documented(http, http.get(f"/jobs/{forced['job_id']}"), "get", "/jobs/{job_id}")
        assert kept["trainer"] == forced["trainer"]
        auto = http.post("/train", json={}).json()["trainer"]
        assert auto["trainer"] == "jax" and "libcudart" in auto["reason"]


def test_an_operator_who_does_not_prefer_jax_gets_pytorch(robot: Robot, tmp_path: Path) -> None:
    robot.install("torch", GOOD_TORCH)
    with client(tmp_path, BRAIN_LEARNING__PREFER_JAX="false") as http:
        http.get("/hardware")
        assert http.post("/train", json={}).json()["trainer"]["trainer"] == "pytorch"
        assert http.get("/hardware").json()["trainers"]["trainer"] == "pytorch"
        assert http.post("/train", json={"trainer": "jax"}).json()["trainer"]["trainer"] == "jax"
        # Elsewhere JAX alone trains, and nothing here is asked.
        away = http.post("/train", json={"target": "process"}).json()["trainer"]
        assert away["trainer"] == "jax" and "process" in away["reason"]


def test_what_cannot_train_is_refused_before_any_job(robot: Robot, tmp_path: Path) -> None:
    robot.install("torch", CUDA_TORCH)
    with client(tmp_path) as http:
        for kind in ("train", "pipeline"):
            problem = assert_problem(http.post(f"/{kind}", json={"trainer": "pytorch"}), 422)
            assert problem["field"] == "trainer"
            assert "libcudart" in problem["detail"] and "CPU build" in problem["detail"]
            problem = assert_problem(http.post(f"/{kind}", json={"trainer": "pytorch", "target": "process"}), 422)
            assert problem["field"] == "trainer" and "'local'" in problem["detail"]
        assert http.get("/jobs").json()["jobs"] == []


def test_the_daemon_goes_on_while_runtimes_are_asked(robot: Robot, tmp_path: Path) -> None:
    """A runtime that does not answer holds up those who ask about it, however many, and nobody else."""
    go = tmp_path / "go"
    waits = f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
    robot.install("torch", waits + GOOD_TORCH)
    told: list[Any] = []
    with client(tmp_path) as http:
        asking = [
            threading.Thread(target=lambda: told.append(http.get("/hardware").json()["trainers"]))
            for _ in range(8)
        ]
        for thread in asking:
            thread.start()
        wait_until(lambda: robot.imports("torch") == 1, "PyTorch to be asked")
        for _ in range(20):
            assert http.get("/livez").status_code == 200
        episode = http.post("/episodes", json={}).json()["episode_id"]
        assert http.post(f"/episodes/{episode}/steps", json=STEP).status_code == 200
        for trainer in ("auto", "jax"):
            queued = as_documented(http, http.post("/train", json={"trainer": trainer}), "post", "/train")
            assert queued["trainer"]["trainer"] is None and "still being asked" in queued["trainer"]["reason"]
        assert http.post("/convert", json={}).json()["trainer"] is None
        assert told == []
        go.touch()
        for thread in asking:
            thread.join()
    assert [choice["trainer"] for choice in told] == ["jax"] * 8
