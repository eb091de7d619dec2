"""Daemons with a model: one that recorded, trained for a moment and serves what came out, and one with the toy."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.inference.toy import build_toy
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
        answer = httpx.post(f"{daemon.url}/pipeline", json={"preset": "development", "steps": 4}, timeout=120)
        assert answer.status_code == 202, answer.text
        job = wait_for_job(daemon.url + answer.headers["location"])
        assert job["state"] == "succeeded", job
        yield daemon


@dataclass(frozen=True)
class Driven:
    """A daemon that serves the toy model behind tokens; `spare_id` is a bundle that does not serve."""

    daemon: Daemon
    model_id: str
    spare_id: str

    @property
    def url(self) -> str:
        return self.daemon.url

    @property
    def worker_pid(self) -> int:
        models = httpx.get(f"{self.url}/models", headers=bearer("reader")).json()["models"]
        (pid,) = [model["serving"]["worker_pid"] for model in models if model["serving"]]
        assert isinstance(pid, int)
        return pid


TOKENS = {"robot": "control", "twin": "control", "reader": "read", "boss": "operate"}


def token(name: str) -> str:
    """Return the token of one of `TOKENS`."""
    return f"{name}-token-0123456789"


def bearer(name: str) -> dict[str, str]:
    """Return the header with that token."""
    return {"Authorization": f"Bearer {token(name)}"}


@pytest.fixture(scope="session")
def driven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    """A daemon with the toy model, deadlines that no busy machine misses, and a worker that may be frozen."""
    folder = tmp_path_factory.mktemp("driven")
    first, second = (build_toy(folder / "brain" / "models", scale) for scale in (1.0, 2.0))
    (folder / "tokens").write_text("".join(f"{token(name)} {scopes}\n" for name, scopes in TOKENS.items()))
    env = {
        "BRAIN_TOKENS_FILE": str(folder / "tokens"),
        "BRAIN_INFERENCE__BACKENDS": "cpu",
        "BRAIN_INFERENCE__DEADLINE_MS": "30000",
        "BRAIN_INFERENCE__WORKER_HANG_S": "120",
        "BRAIN_CAPTURE__MAX_STEP_BYTES": str(256 * 1024),
        "BRAIN_CAPTURE__MAX_BODY_BYTES": str(1024**2),
    }
    with running_daemon(folder / "brain", env=env) as daemon:
        answer = httpx.post(f"{daemon.url}/models/{first}/activate", headers=bearer("boss"), timeout=120)
        assert answer.status_code == 200, answer.text
        yield Driven(daemon, first, second)
