"""How soon a daemon that was killed looks after its run in the cloud again. Simulated: bucket and control plane.

    python -m tests.bench bench_adopt

A run waits for capacity; the daemon is killed at any moment and started again. The figure is the time from the
start of its process until the control plane is asked for that very capacity. The floor is an interpreter that
imports what the process which asks imports.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from brain_service.settings import child_environment
from tests.bench.rows import Row
from tests.fakes.control_plane import ControlPlane, running_control_plane
from tests.fakes.gcs import fake_gcs
from tests.processes import Daemon

ROUNDS = 10
GIVE_UP_S = 60.0
IMPORTS = "import brain_service.jobs.stages.launch"


def measure() -> list[Row]:
    """Measure and return the rows."""
    floor = float(np.median([_imports_s() for _ in range(ROUNDS)]))
    with (
        tempfile.TemporaryDirectory() as folder,
        fake_gcs() as gcs,
        running_control_plane(Path(folder) / "plane") as plane,
    ):
        gcs.make_bucket("robots")
        plane.script(life={"queue_s": 3600})
        cloud = {
            "BUCKET": "robots",
            "PROJECT": "lab-robots",
            "IMAGE": "example/trainer:1",
            "VERTEX_ENDPOINT": plane.url,
            "STORAGE_ENDPOINT": gcs.url,
            "TOPOLOGY": "v5e:1x1",
        }
        environment = {f"BRAIN_CLOUD__{name}": value for name, value in cloud.items()} | gcs.environment()
        daemon = Daemon(Path(folder) / "brain", env=environment).start()
        try:
            _begin(daemon, plane)
            taken_s = [_adopted_s(daemon, plane) for _ in range(ROUNDS)]
        finally:
            daemon.stop()
    floor_name = "an interpreter with the same imports"
    return [
        Row("a run is looked after again, p50", float(np.median(taken_s)), "s", floor_name, floor),
        Row("a run is looked after again, worst", max(taken_s), "s", floor_name, floor),
    ]


def _imports_s() -> float:
    begun_s = time.monotonic()
    subprocess.run([sys.executable, "-c", IMPORTS], env=child_environment({}), check=True)
    return time.monotonic() - begun_s


def _begin(daemon: Daemon, plane: ControlPlane) -> None:
    """Record something, and train on it elsewhere; return once capacity was asked for."""
    with httpx.Client(base_url=daemon.url, timeout=30) as client:
        for _ in range(4):
            episode = client.post("/episodes", json={"environment_id": "bench"}).raise_for_status().json()
            step = {"observation": {"state": [0.5]}, "action": {"command": [0.5]}}
            steps = [step | {"step_index": index} for index in range(8)]
            client.post(f"/episodes/{episode['episode_id']}/steps", json=steps).raise_for_status()
            client.post(f"/episodes/{episode['episode_id']}/end", json={"reason": "truncated"}).raise_for_status()
        client.post("/train", json={"target": "vertex", "steps": 20}).raise_for_status()
    _wait(lambda: bool(plane.report()["resources"]), "capacity to be asked for")
    _wait(lambda: _looks(plane) > 0, "the first look")


def _adopted_s(daemon: Daemon, plane: ControlPlane) -> float:
    """Kill the daemon and start it again; return the time until its run's capacity is asked about."""
    daemon.kill()
    time.sleep(1.0)  # the runner and its workers follow their daemon
    (daemon.data_dir / "starts.json").unlink(missing_ok=True)  # so many kills in a row end in safe mode
    before = _looks(plane)
    begun_s = time.monotonic()
    daemon.start()
    _wait(lambda: _looks(plane) > before, "the next look")
    return time.monotonic() - begun_s


def _looks(plane: ControlPlane) -> int:
    return sum(resource["looks"] for resource in plane.report()["resources"])


def _wait(happened: Any, what: str) -> None:
    give_up_s = time.monotonic() + GIVE_UP_S
    while not happened():
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"waited {GIVE_UP_S:.0f} s for {what}")
        time.sleep(0.01)
