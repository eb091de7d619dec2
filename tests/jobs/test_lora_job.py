"""Fine-tuning by PyTorch as a job, over HTTP on a real daemon: recordings in, a model that serves, and back."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from brain_service.export.bundle import Bundle
from brain_service.training.torch_lora.document import read_document
from tests.hardware.sysfs import set_battery, set_temperature
from tests.jobs.recordings import write_episodes
from tests.jobs_http import wait_for_job
from tests.processes import Daemon, running_daemon

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # for a machine that others take
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None,
        reason="torch is not installed: pip install 'continuon-brain[torch]'",
    ),
]

BASE = {"trainer": "jax", "steps": 30, "batch_size": 4, "sequence_length": 16, "learning_rate": 1e-3}
TUNE = {"trainer": "pytorch", "steps": 60, "batch_size": 8, "sequence_length": 16, "learning_rate": 1e-2}


@dataclass(frozen=True)
class Robot:
    """A daemon that serves a model of its own recordings, with sensors that the tests set."""

    daemon: Daemon
    data_dir: Path
    sysfs: Path
    base_model: str

    def submit(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = httpx.post(f"{self.daemon.url}/{kind}", json=body, timeout=60)
        assert answer.status_code == 202, answer.text
        return wait_for_job(self.daemon.url + answer.headers["Location"])

    @property
    def active(self) -> str:
        return str((self.data_dir / "models" / "active").readlink())

    def audit(self) -> list[dict[str, Any]]:
        path = self.data_dir / "adapters" / "audit.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Robot]:
    folder = tmp_path_factory.mktemp("robot")
    data_dir, sysfs = folder / "brain", folder / "sys"
    set_temperature(sysfs, 50)
    set_battery(sysfs, 90)
    write_episodes(data_dir / "episodes", 20, 30)
    environment = {"BRAIN_GATES__SYSFS": str(sysfs), "BRAIN_GATES__POLL_INTERVAL_S": "0.2"}
    with running_daemon(data_dir, env=environment) as daemon:
        robot = Robot(daemon, data_dir, sysfs, "")
        job = robot.submit("pipeline", BASE)
        assert job["state"] == "succeeded", job["error"]
        yield Robot(daemon, data_dir, sysfs, job["result"]["model_id"])


def lora(robot: Robot, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "brain_service", "lora", *arguments, "--data-dir", str(robot.data_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_missing_sensor_fails_the_job_with_its_name_and_the_model_goes_on_serving(robot: Robot) -> None:
    zones = list(robot.sysfs.glob("class/thermal/*/temp"))
    kept = [zone.read_text() for zone in zones]
    for zone in zones:
        zone.unlink()
    job = robot.submit("pipeline", TUNE)
    for zone, text in zip(zones, kept, strict=True):
        zone.write_text(text)
    assert job["state"] == "failed"
    assert "sensor 'temperature' is missing" in job["error"]["detail"]
    assert "lora.allow_missing" in job["error"]["detail"]
    assert robot.active == robot.base_model
    assert not (robot.data_dir / "adapters" / job["job_id"]).exists()


def test_adapters_become_the_model_that_serves_and_are_taken_back(robot: Robot) -> None:
    job = robot.submit("pipeline", TUNE)
    assert job["state"] == "succeeded", job["error"]
    run, trained, promotion = job["job_id"], job["result"]["train"], job["result"]["evaluation"]["promotion"]
    assert trained["checkpoint"] == run
    assert trained["base"] == f"model {robot.base_model}"
    assert trained["steps"] == 60 or trained["ended_by"] == "held-out loss"
    assert promotion["active"] == robot.base_model
    assert promotion["promoted"], promotion["reason"]
    assert promotion["candidate_error"] < promotion["active_error"]
    train = next(stage for stage in job["stages"] if stage["name"] == "train")
    assert train["command"].startswith("brain lora train --data-dir")

    document = read_document(robot.data_dir / "adapters" / run)
    assert document.sha256 == trained["sha256"]
    assert robot.active == job["result"]["model_id"] != robot.base_model
    manifest = Bundle.open(robot.data_dir / "models" / robot.active).manifest
    assert manifest.adapters == document.provenance()
    assert manifest.source_run == run
    shown = httpx.get(f"{robot.daemon.url}/models", timeout=30).json()["models"]
    assert next(model["adapters"] for model in shown if model["model_id"] == robot.active) == manifest.adapters
    assert [(line["event"], line["run"], line["who"]) for line in robot.audit()] == [
        ("trained", run, f"job {run}"),
        ("promoted", run, f"job {run}"),
    ]
    assert robot.audit()[1]["evaluation"] == promotion

    listed = json.loads(lora(robot, "ls", "--json").stdout)
    assert [(each["run"], each["place"], each["sha256"]) for each in listed] == [(run, "current", document.sha256)]

    behind_its_back = lora(robot, "rollback")
    assert behind_its_back.returncode == 2
    assert "--url" in behind_its_back.stderr
    back = lora(robot, "rollback", "--url", robot.daemon.url)
    assert back.returncode == 0, back.stderr
    assert robot.active == robot.base_model
    assert json.loads(lora(robot, "ls", "--json").stdout)[0]["place"] == "history"
    assert [line["event"] for line in robot.audit()[2:]] == ["rolled back", "found"]

    again = lora(robot, "promote", run, "--url", robot.daemon.url)
    assert again.returncode == 0, again.stderr
    assert robot.active == job["result"]["model_id"]
    assert robot.audit()[-1]["event"] == "promoted"
    assert robot.audit()[-1]["evaluation"]["promoted"] is True
    assert lora(robot, "rollback", "--url", robot.daemon.url).returncode == 0


def test_a_training_rests_while_an_episode_is_recorded_and_can_be_cancelled(robot: Robot) -> None:
    episode = httpx.post(f"{robot.daemon.url}/episodes", json={}, timeout=30).json()["episode_id"]
    answer = httpx.post(f"{robot.daemon.url}/train", json=TUNE | {"dataset": "episodes"}, timeout=30)
    location = robot.daemon.url + answer.headers["Location"]
    seen: list[str] = []

    def look(job: dict[str, Any]) -> None:
        details = {stage["name"]: stage["details"] for stage in job["stages"]}.get("train", "")
        if details.startswith("paused") and not seen:
            seen.append(details)
            httpx.delete(location, timeout=30)

    job = wait_for_job(location, look)
    httpx.delete(f"{robot.daemon.url}/episodes/{episode}", timeout=30)
    assert job["state"] == "cancelled"
    assert "1 episodes are being recorded" in seen[0]
    assert robot.active == robot.base_model
