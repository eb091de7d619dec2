"""Everything at once, for minutes here and for hours by hand: capture, actions, trainings, swaps and faults.

BRAIN_SOAK_MINUTES=240 python -m pytest tests/e2e/test_soak.py
"""

import os
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
import pytest

from brain_service.client import BrainClient
from tests.api.conftest import record_episodes
from tests.inference.toy import build_toy
from tests.processes import Daemon

MINUTES = float(os.environ.get("BRAIN_SOAK_MINUTES", "1.5"))
TYPED = "urn:continuon-brain:problem:"


class Sample(NamedTuple):
    """What the daemon's own process holds."""

    rss_bytes: int
    descriptors: int
    threads: int


class Soak:
    """A daemon under load from several threads, until told to stop; what goes wrong is kept."""

    def __init__(self, daemon: Daemon, models: tuple[str, str]) -> None:
        self.daemon = daemon
        self.models = models
        self.over = threading.Event()
        self.wrong: list[str] = []
        self.logged: dict[str, int] = {}
        self.answers: Counter[int] = Counter()
        self.swaps = self.kills = 0
        self.samples: list[Sample] = []

    def threads(self) -> list[threading.Thread]:
        """Return one thread a kind of load."""
        work = (self.capture, self.capture, self.act, self.act, self.train, self.swap, self.fault, self.sample)
        return [threading.Thread(target=self.guarded, args=(one,), name=one.__name__) for one in work]

    def guarded(self, work: Callable[[], None]) -> None:
        """Keep what a thread dies of."""
        try:
            work()
        except Exception as error:  # noqa: BLE001  a thread's failure is the test's
            self.wrong.append(f"{work.__name__}: {type(error).__name__}: {error}")

    def capture(self) -> None:
        """Record episode after episode at about 100 Hz; every step that was taken must be there in the end."""
        with BrainClient(self.daemon.url) as client:
            while not self.over.is_set():
                with client.record(environment_id="soak") as episode:
                    for step in range(300):
                        episode.log_step({"joints": np.full(6, step, np.float32)}, {"command": [0.5, -0.25]})
                        if self.over.wait(0.01):
                            break
                    count = step + 1
                self.logged[episode.episode_id] = count

    def act(self) -> None:
        """Ask for actions at about 50 Hz; a session that is gone is begun anew."""
        with httpx.Client(base_url=self.daemon.url, timeout=30) as http:
            session, step = "", 0
            while not self.over.wait(0.02):
                if not session:
                    session, step = self._ask(http, "/sessions", {}).get("session_id", ""), 0
                    continue
                # To and fro: the toy model sums up what it sees, and its actions are to stay off their limits.
                angle = step * np.pi / 2
                seen = {"arm": {"joints": [0.1 * float(np.sin(angle)), 0.1 * float(np.cos(angle))]}, "load": 0.5}
                body = {"session_id": session, "step": step, "observation": seen, "deadline_ms": 2000}
                answer = self._ask(http, "/infer", body)
                step += "action" in answer
                session = "" if answer.get("status") in (404, 409) else session

    def _ask(self, http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = http.post(path, json=body)
        self.answers[answer.status_code] += 1
        document: dict[str, Any] = answer.json()
        if not answer.is_success and not str(document.get("type", "")).startswith(TYPED):
            self.wrong.append(f"{path} answered {answer.status_code} without a problem: {answer.text[:200]}")
        if answer.status_code >= 500 and answer.status_code not in (503, 504):
            self.wrong.append(f"{path} answered {answer.status_code}: {document.get('detail')}")
        return document

    def train(self) -> None:
        """Keep the job runner busy with small trainings."""
        with httpx.Client(base_url=self.daemon.url, timeout=120) as http:
            while not self.over.is_set():
                job = http.post("/train", json={"steps": 30, "checkpoint_every": 1000, "dataset": "taught"}).json()
                while not self.over.wait(0.5):
                    now = http.get(f"/jobs/{job['job_id']}").json()
                    if now["state"] in ("succeeded", "failed", "cancelled"):
                        if now["state"] == "failed":
                            self.wrong.append(f"a training failed: {now['error']}")
                        break
                else:
                    http.delete(f"/jobs/{job['job_id']}")

    def swap(self) -> None:
        """Swap the two models back and forth."""
        with httpx.Client(base_url=self.daemon.url, timeout=120) as http:
            while not self.over.wait(3.0):
                answer = http.post(f"/models/{self.models[self.swaps % 2]}/activate")
                if answer.is_success:
                    self.swaps += 1
                elif answer.status_code not in (409, 503):
                    self.wrong.append(f"a swap answered {answer.status_code}: {answer.text[:200]}")

    def fault(self) -> None:
        """Kill a worker of the daemon now and then."""
        while not self.over.wait(7.0):
            with suppress(psutil.Error, IndexError):
                found = [
                    child
                    for child in psutil.Process(self.daemon.process.pid).children(recursive=True)
                    if any("inference.worker" in word or "jobs.worker" in word for word in child.cmdline())
                ]
                found[self.kills % len(found) if found else 0].send_signal(signal.SIGKILL)
                self.kills += 1

    def sample(self) -> None:
        """Look at the daemon's process every second."""
        process = psutil.Process(self.daemon.process.pid)
        while not self.over.wait(1.0):
            self.samples.append(Sample(process.memory_info().rss, process.num_fds(), process.num_threads()))


@contextmanager
def soaking(folder: Path) -> Iterator[Soak]:
    """Run the load for a block on a daemon that has two models and a dataset."""
    models = (build_toy(folder / "brain" / "models", 1.0), build_toy(folder / "brain" / "models", 2.0))
    env = {
        "BRAIN_INFERENCE__BACKENDS": "cpu",
        "BRAIN_INFERENCE__CANARY_STEPS": "0",
        # A toy is no policy: what its actions look like is not judged here.
        "BRAIN_INFERENCE__ROLLBACK__PROBATION_S": "0",
        "BRAIN_JOBS__MAX_ATTEMPTS": "99",
    }
    daemon = Daemon(folder / "brain", env=env).start()
    soak = Soak(daemon, models)
    try:
        record_episodes(daemon.url, 4)
        made = httpx.post(f"{daemon.url}/convert", json={"name": "taught"}).json()
        while httpx.get(f"{daemon.url}/jobs/{made['job_id']}").json()["state"] in ("queued", "running"):
            time.sleep(0.2)
        httpx.post(f"{daemon.url}/models/{models[0]}/activate", timeout=120).raise_for_status()
        threads = soak.threads()
        for thread in threads:
            thread.start()
        yield soak
        soak.over.set()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive(), f"{thread.name} hangs"
        lost = {
            episode: (count, found)
            for episode, count in soak.logged.items()
            if (found := httpx.get(f"{daemon.url}/episodes/{episode}", timeout=30).json()["steps"]) != count
        }
        assert not lost, lost
    finally:
        soak.over.set()
        daemon.stop()


@pytest.mark.soak
@pytest.mark.timeout(MINUTES * 60 + 600)
def test_everything_at_once_loses_nothing_and_holds_on_to_nothing(tmp_path: Path) -> None:
    with soaking(tmp_path) as soak:
        time.sleep(MINUTES * 60)
    assert not soak.wrong, soak.wrong[:10]
    assert soak.swaps >= 3 and soak.kills >= 3 and len(soak.logged) >= 4, (soak.swaps, soak.kills, soak.logged)
    # A killed worker of the only backend takes a second or two to come back, and 503 says so meanwhile.
    assert soak.answers[200] > 0.6 * sum(soak.answers.values()), soak.answers
    # The first third fills pools and caches.
    third = len(soak.samples) // 3
    early, late = soak.samples[third : 2 * third], soak.samples[-third:]
    grown = [
        statistics.median(sample[part] for sample in late) - statistics.median(sample[part] for sample in early)
        for part in range(len(Sample._fields))
    ]
    assert grown[0] < 8e6 and grown[1] <= 8 and grown[2] <= 4, (grown, early[0], late[-1])
