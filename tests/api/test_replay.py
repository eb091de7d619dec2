"""A real daemon, sessions side by side on a real model, recorded, and `brain replay`: every action bit for bit."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from brain_service.cli import main
from brain_service.episodes.log_format import decode_line, encode_line
from brain_service.export.jax_step import export_policy
from tests.export.models import source
from tests.processes import Daemon, running_daemon

SESSIONS = 12
PATIENCE_S = 120.0

pytestmark = pytest.mark.long


def observation(rng: np.random.Generator) -> dict[str, Any]:
    joints = rng.normal([100.0, -5.0, 0.0], [20.0, 0.1, 1.0])
    return {"arm": {"joints": joints.tolist()}, "gripper": {"open": bool(rng.integers(2))}, "task": "reach"}


class Robots:
    """A robot a session, each with an episode of its own; their steps meet at a worker that stands still."""

    def __init__(self, daemon: Daemon) -> None:
        self._rng = np.random.default_rng(0)
        self._url = daemon.url
        self._http = [httpx.Client(base_url=daemon.url, timeout=PATIENCE_S) for _ in range(SESSIONS)]
        self.sessions = [self._post(n, "/sessions", {})["session_id"] for n in range(SESSIONS)]
        self.episodes = [
            self._post(n, "/episodes", {"environment_id": "toy"})["episode_id"] for n in range(SESSIONS)
        ]
        self.buckets: set[int] = set()

    def _post(self, number: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self._http[number].post(path, json=body)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def serving(self) -> dict[str, Any]:
        found: dict[str, Any] = self._http[0].get("/models").json()["models"][0]["serving"]
        return found

    def step(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """One step of each of these robots at once."""
        answers: dict[int, dict[str, Any]] = {}
        bodies = {
            n: {
                "session_id": self.sessions[n],
                "observation": observation(self._rng),
                "reward": float(self._rng.normal()),
                "deadline_ms": 60_000,
                "record": self.episodes[n],
                "why": True,
            }
            for n in numbers
        }

        def ask(number: int) -> None:
            answers[number] = self._post(number, "/infer", bodies[number])

        pid = self.serving()["worker_pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            threads = [threading.Thread(target=ask, args=(n,)) for n in numbers]
            for thread in threads:
                thread.start()
            time.sleep(0.2)
        finally:
            os.kill(pid, signal.SIGCONT)
        for thread in threads:
            thread.join(PATIENCE_S)
        assert sorted(answers) == sorted(numbers)
        self.buckets |= {answer["why"]["bucket"] for answer in answers.values()}
        return [answers[n] for n in numbers]

    def end(self) -> None:
        for number, http in enumerate(self._http):
            self._post(number, f"/episodes/{self.episodes[number]}/end", {"reason": "truncated"})
            http.close()


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A data directory with an episode a session, recorded while the worker went from single steps to batches."""
    data_dir = tmp_path_factory.mktemp("replay") / "brain"
    bundle = export_policy(source(), data_dir / "models")
    (data_dir / "models" / "active").symlink_to(bundle.name)
    # A worker that stands still for a moment is not to be killed.
    with running_daemon(data_dir, env={"BRAIN_INFERENCE__WORKER_HANG_S": "60"}) as daemon:
        until(lambda: httpx.get(f"{daemon.url}/readyz", params={"for": "inference"}).status_code == 200)
        robots, everyone = Robots(daemon), range(SESSIONS)
        robots.step([0])
        robots.step(everyone)
        until(lambda: robots.serving()["batches"] is not None)
        assert robots.serving()["batches"]["refused"] == {}, "batches agree with steps alone to 1e-5"
        rng = np.random.default_rng(1)
        for _ in range(6):
            robots.step([int(n) for n in rng.permutation(SESSIONS)])
        httpx.post(f"{daemon.url}/sessions/{robots.sessions[1]}/reset").raise_for_status()
        for count in (2, 5, SESSIONS):
            robots.step([int(n) for n in rng.permutation(SESSIONS)[:count]])
        robots.end()
        assert robots.buckets >= {1} and max(robots.buckets) > 1, robots.buckets
    return data_dir, robots.episodes


def replay(capsys: pytest.CaptureFixture[str], data_dir: Path, episode: str, *more: str) -> tuple[int, Any]:
    code = main(["replay", episode, "--data-dir", str(data_dir), "--json", *more])
    return code, json.loads(capsys.readouterr().out)


def test_every_action_of_sessions_that_were_batched_is_replayed_bit_for_bit(
    lived: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir, episodes = lived
    met = set()
    for episode in episodes[:3]:  # 0 acted alone first, 1 was reset, 2 did neither
        code, found = replay(capsys, data_dir, episode)
        assert found["counts"]["equal"] == found["policy_steps"] >= 8, found
        assert (code, found["passed"], found["first_divergent_step"]) == (0, True, None)
        met |= {(step["bucket"], step["row"]) for step in found["steps"]}
        assert [step["state_step"] for step in found["steps"]].count(0) == (2 if episode == episodes[1] else 1)
    assert max(bucket for bucket, _ in met) > 1 and max(row for _, row in met) > 0


def test_a_changed_action_is_the_first_divergent_step_and_the_exit_code_is_1(
    lived: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data_dir, episodes = lived
    copied = tmp_path / "brain"
    (copied / "episodes").mkdir(parents=True)
    (copied / "models").symlink_to(data_dir / "models")
    log = f"{episodes[2]}.jsonl"
    lines = (data_dir / "episodes" / log).read_bytes().splitlines(keepends=True)
    record = decode_line(lines[4])
    record["action"]["command"][0] += 0.001
    lines[4] = encode_line(record)
    (copied / "episodes" / log).write_bytes(b"".join(lines))
    code, found = replay(capsys, copied, episodes[2])
    assert (code, found["passed"], found["first_divergent_step"]) == (1, False, 3)
    assert main(["replay", episodes[2], "--data-dir", str(copied)]) == 1
    assert "first divergent step: 3" in capsys.readouterr().out


def test_what_is_no_recorded_episode_is_said_in_one_line(
    lived: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir, episodes = lived
    for arguments in (["none-such"], [episodes[0], "--backend", "abacus"]):
        assert main(["replay", *arguments, "--data-dir", str(data_dir)]) == 2
        assert capsys.readouterr().err.startswith("brain replay: no ")
