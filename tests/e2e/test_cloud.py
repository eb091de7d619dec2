"""The whole way to the cloud and back: a real daemon, real storage and a real run, on an emulator and a fake.

Simulated: the bucket is fake-gcs-server, Google's control planes are `tests.fakes.control_plane`, and the run
trains on this machine's CPU. What is in between is the real code over the real wire formats.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from brain_service.jobs.job import ENDED
from brain_service.jobs.table import JobTable
from tests.fakes.control_plane import ControlPlane, running_control_plane
from tests.fakes.gcs import FakeGcs, fake_gcs
from tests.processes import Daemon, running_daemon

BUCKET = "robots"
EPISODES, STEPS = 12, 30
TRAIN = {"preset": "development", "steps": 40, "batch_size": 8, "sequence_length": 16, "checkpoint_every": 10}
PHASES = ("convert", "upload", "launch", "fetch", "evaluate", "canary", "activate")


@dataclass
class Cloud:
    """A bucket and a control plane, and the settings that lead a daemon to them."""

    gcs: FakeGcs
    plane: ControlPlane
    folder: Path
    killed: list[str] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """Return the daemon's settings."""
        settings = {
            "BUCKET": BUCKET,
            "PROJECT": "lab-robots",
            "IMAGE": "example/trainer:1",
            "VERTEX_ENDPOINT": self.plane.url,
            "TPU_ENDPOINT": self.plane.url,
            "STORAGE_ENDPOINT": self.gcs.url,
            "POLL_INTERVAL_S": "0.5",
            "TOPOLOGY": "v5e:1x1",
        }
        return {f"BRAIN_CLOUD__{name}": value for name, value in settings.items()} | self.gcs.environment()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    with fake_gcs() as gcs:
        gcs.make_bucket(BUCKET)
        env = gcs.environment() | {"EPATH_USE_TF": "false", "JAX_PLATFORMS": "cpu"}
        with running_control_plane(tmp_path / "plane", run=True, env=env) as plane:
            yield Cloud(gcs, plane, tmp_path)


def record(url: str) -> None:
    """Record a few episodes of a point that is driven to a goal, as a controller would."""
    with httpx.Client(base_url=url, timeout=30) as client:
        for number in range(EPISODES):
            created = client.post("/episodes", json={"environment_id": "bench", "xr_mode": "trainer", "tags": []})
            episode = created.raise_for_status().json()["episode_id"]
            position, goal = 0.1 * number - 0.5, 0.6 - 0.1 * number
            lines = []
            for index in range(STEPS):
                command = max(-1.0, min(1.0, 2 * (goal - position)))
                lines.append(
                    {
                        "step_index": index,
                        "observation": {"state": [position, goal]},
                        "action": {"command": [command]},
                        "reward": -abs(goal - position),
                        "is_terminal": index == STEPS - 1,
                    }
                )
                position += 0.1 * command
            client.post(f"/episodes/{episode}/steps", json=lines).raise_for_status()
            client.post(f"/episodes/{episode}/end", json={"reason": "terminated"}).raise_for_status()


def running_stage(job: Any) -> str:
    return next((stage.name for stage in job.stages if stage.status == "running"), "")


def heartbeat(cloud: Cloud, run_id: str) -> dict[str, Any]:
    name = f"continuon-brain%2Fruns%2F{run_id}%2Fstatus.json"
    answer = httpx.get(f"{cloud.gcs.url}/storage/v1/b/{BUCKET}/o/{name}?alt=media")
    return dict(json.loads(answer.content)) if answer.is_success else {}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["vertex", "queued_resource"])
def test_a_model_comes_back_from_the_cloud_whatever_is_killed(cloud: Cloud, target: str) -> None:
    """One preemption, and the daemon killed once in each phase: one run is paid for, one model is activated."""
    daemon = Daemon(cloud.folder / "brain", env=cloud.environment()).start()
    table = JobTable(cloud.folder / "brain" / "brain.db")
    try:
        record(daemon.url)
        answer = httpx.post(f"{daemon.url}/train", json=TRAIN | {"target": target}, timeout=30).raise_for_status()
        job_id = answer.json()["job_id"]
        preempted = False
        give_up = time.monotonic() + 500
        while (job := table.get(job_id)).state not in ENDED:
            assert time.monotonic() < give_up, job
            stage = running_stage(job)
            if stage in PHASES and stage not in cloud.killed:
                cloud.killed.append(stage)
                daemon.kill()
                daemon = Daemon(cloud.folder / "brain", port=daemon.port, env=cloud.environment()).start()
            if stage == "launch" and not preempted and heartbeat(cloud, job_id.lower()).get("step", 0) >= 10:
                preempted = bool(cloud.plane.preempt())
            time.sleep(0.01)
        assert job.state == "succeeded", job.error
        assert preempted and {"upload", "launch", "fetch", "evaluate"} <= set(cloud.killed), cloud.killed
        report = cloud.plane.report()
        assert sum(report["creations"].values()) == 2 and report["max_live"] == 1 and report["live"] == 0, report
        run = job.result["run"]
        assert run["attempts"] == 2 and run["steps"] == TRAIN["steps"]
        models = httpx.get(f"{daemon.url}/models", timeout=30).json()["models"]
        assert [model["model_id"] for model in models] == [run["model_id"]]
        assert (cloud.folder / "brain" / "models" / "active").readlink().name == run["model_id"]
        session = httpx.post(f"{daemon.url}/sessions", json={}, timeout=30).raise_for_status().json()["session_id"]
        body = {"session_id": session, "step": 0, "observation": {"state": [0.0, 0.5]}, "deadline_ms": 5000}
        acted = httpx.post(f"{daemon.url}/infer", json=body, timeout=30).raise_for_status().json()
        assert acted["model_id"] == run["model_id"] and len(acted["action"]["command"]) == 1
    finally:
        table.close()
        daemon.stop()


def ended(daemon: Daemon, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Start a job, and return it once it has succeeded."""
    answer = httpx.post(f"{daemon.url}{path}", json=body, timeout=30).raise_for_status()
    give_up = time.monotonic() + 500
    while True:
        job: dict[str, Any] = httpx.get(f"{daemon.url}{answer.headers['Location']}", timeout=30).json()
        if job["state"] in ENDED:
            assert job["state"] == "succeeded", job["error"]
            return job
        assert time.monotonic() < give_up, job
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_model_from_away_that_is_worse_is_kept_but_not_served(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "brain") as daemon:
        record(daemon.url)
        good = ended(daemon, "/pipeline", TRAIN | {"steps": 150})["result"]["model_id"]
        job = ended(daemon, "/train", TRAIN | {"target": "process", "steps": 1})
        assert job["result"]["evaluation"]["promotion"]["promoted"] is False
        assert {stage["name"]: stage["status"] for stage in job["stages"]}["activate"] == "skipped", job["stages"]
        models = httpx.get(f"{daemon.url}/models", timeout=30).json()["models"]
        assert {model["model_id"] for model in models} == {good, job["result"]["model_id"]}
        assert (tmp_path / "brain" / "models" / "active").readlink().name == good
