"""A daemon that has lived a little: it recorded, trained for a moment, and serves what came out."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.jobs_http import wait_for_job
from tests.pictures import picture
from tests.processes import Daemon, running_daemon

JOINTS = 3


def observation(step: int) -> dict[str, Any]:
    """Return what the toy robot senses at a step: two named features, one nested."""
    angle = 0.1 * step
    return {"arm": {"joints": [np.sin(angle), np.cos(angle), 0.5]}, "holding": step % 2 == 0}


def camera(step: int) -> str:
    """Return what its camera sees, a PNG in base64: recorded, and never asked for by a model that sees none."""
    return base64.b64encode(picture(step)).decode()


def record_episodes(url: str, episodes: int, steps: int = 20) -> None:
    """Record a toy robot's episodes over HTTP, whole batches at a time."""
    with httpx.Client(base_url=url, timeout=10) as http:
        for number in range(episodes):
            episode = http.post("/episodes", json={"environment_id": "toy"}).json()["episode_id"]
            batch = [
                {
                    "step_index": i,
                    "observation": observation(i + number) | {"camera": camera(i)},
                    "action": {"command": [float(np.sin(0.1 * (i + number))), -0.25]},
                    "reward": 0.1,
                    "is_terminal": i == steps - 1,
                }
                for i in range(steps)
            ]
            http.post(f"/episodes/{episode}/steps", json=batch).raise_for_status()
            http.post(f"/episodes/{episode}/end", json={"reason": "terminated"}).raise_for_status()


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with a served model; tests leave its sessions as they found them."""
    data_dir: Path = tmp_path_factory.mktemp("taught") / "brain"
    with running_daemon(data_dir) as daemon:
        record_episodes(daemon.url, 4)
        answer = httpx.post(f"{daemon.url}/pipeline", json={"preset": "development", "steps": 4})
        assert answer.status_code == 202, answer.text
        job = wait_for_job(daemon.url + answer.headers["location"])
        assert job["state"] == "succeeded", job
        yield daemon
