"""kill -9 of the daemon at random instants under load, again and again on one data directory."""

import asyncio
import logging
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson

from brain_service.episodes.log_format import decode_line
from tests.faults.judge import Promise
from tests.faults.load import Heard, Place, drive
from tests.faults.nursery import Nursery
from tests.faults.robots import body, differs
from tests.processes import free_port

__all__ = ["Killed", "kill_again_and_again", "kill_apart"]

_BEFORE_IT_ANSWERS = 0.15  # share of the kills that hit a daemon while it starts and recovers
_PATIENCE_S = 30.0


@dataclass(slots=True)
class Killed:
    """What the kills did: runs, accepted steps and how many of them were lost, and what else went wrong."""

    runs: int = 0
    accepted: int = 0
    lost: int = 0
    recovery_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def add(self, other: "Killed") -> None:
        """Take another's figures in."""
        self.runs += other.runs
        self.accepted += other.accepted
        self.lost += other.lost
        self.recovery_s += other.recovery_s
        self.violations += other.violations


def kill_again_and_again(folder: Path, runs: int, seed: int) -> Killed:
    """Kill a daemon `runs` times under load; after each start compare every step that was answered, bit by bit.

    `recovery_s` is the time from the start of the process until every log of the last run has answered.
    """
    killed, rng, nursery = Killed(), random.Random(seed), Nursery()
    heard: Heard = {}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for _ in range(runs):
            _run(folder, nursery, heard, rng, killed)
            killed.runs += 1
        pid, place = _start(folder, nursery)
        _look(folder, place, heard, killed, time.perf_counter())
        nursery.kill(pid)
    finally:
        nursery.close()
    return killed


def kill_apart(folder: Path, runs: int, seed: int) -> Killed:
    """Do as `kill_again_and_again` in a process of its own, so that several can go on at once."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(folder), str(runs), str(seed)], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return Killed(**orjson.loads(done.stdout))


def _run(folder: Path, nursery: Nursery, heard: Heard, rng: random.Random, killed: Killed) -> None:
    began_s = time.perf_counter()
    pid, place = _start(folder, nursery)
    try:
        if rng.random() < _BEFORE_IT_ANSWERS:
            time.sleep(rng.uniform(0, 0.2))
            return
        _look(folder, place, heard, killed, began_s)
        heard.clear()
        dead = threading.Event()

        def kill() -> None:
            nursery.kill(pid)
            dead.set()

        asyncio.run(drive(place, heard, rng, kill, rng.uniform(0.02, 0.4)))
        pid = 0 if dead.is_set() else pid
    finally:
        if pid:
            nursery.kill(pid)


def _start(folder: Path, nursery: Nursery) -> tuple[int, Place]:
    place = Place(free_port(), folder / "brain" / "brain.sock")
    # Without a fixed reserve of space the test would depend on the disk that it runs on.
    arguments = ["serve", "--data-dir", str(folder / "brain"), "--port", str(place.port)]
    return nursery.start(arguments, folder / "daemon.log"), place


def _look(folder: Path, place: Place, heard: Heard, killed: Killed, began_s: float) -> None:
    """Compare what the daemon recovered with what it answered before it died; then go on, end and delete."""
    with httpx.Client(base_url=f"http://127.0.0.1:{place.port}", timeout=_PATIENCE_S) as http:
        _wait(http)
        summaries = {name: http.get(f"/episodes/{name}") for name in heard}
        if heard:
            killed.recovery_s.append(time.perf_counter() - began_s)
        for name, promise in heard.items():
            answer = summaries[name]
            killed.accepted += promise.accepted + 1
            if answer.status_code == 404 and not promise.created:
                continue
            if answer.status_code != 200:
                killed.violations.append(f"{name}: {answer.status_code} {answer.text}")
                killed.lost += promise.accepted + 1
                continue
            _compare(folder, name, promise, answer.json(), killed)
            _go_on(http, name, answer.json(), killed)


def _wait(http: httpx.Client) -> None:
    give_up_s = time.perf_counter() + _PATIENCE_S
    while True:
        try:
            if http.get("/livez").status_code == 200:
                return
        except httpx.TransportError:
            assert time.perf_counter() < give_up_s, "the daemon does not answer"
            time.sleep(0.002)


def _compare(folder: Path, name: str, promise: Promise, summary: dict[str, Any], killed: Killed) -> None:
    records = list(_records(folder / "brain" / "episodes" / f"{name}.jsonl"))
    steps = [record for record in records if record["type"] == "step"]
    wrong = [text for index, record in enumerate(steps) if (text := differs(record, name, index))]
    killed.lost += max(0, promise.accepted + 1 - len(steps)) + len(wrong)
    killed.violations += wrong
    if summary["steps"] != len(steps) or len(steps) > promise.sent + 1:
        killed.violations.append(
            f"{name} has {summary['steps']} steps, {len(steps)} lines, {promise.sent + 1} sent"
        )
    if promise.accepted >= len(steps):
        killed.violations.append(f"{name} has {len(steps)} steps, step {promise.accepted} was accepted")
    if promise.ended and summary["state"] != promise.ended:
        killed.violations.append(f"{name} ended as {promise.ended}, now it is {summary['state']}")


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Read the log as it stands on the disk."""
    with path.open("rb") as file:
        yield from map(decode_line, file)


def _go_on(http: httpx.Client, name: str, summary: dict[str, Any], killed: Killed) -> None:
    """The robot resends its last step, sends the next one, and ends; the episode is deleted to keep runs short."""
    steps = int(summary["steps"])
    if summary["state"] == "open":
        again = [body(name, index) for index in range(max(0, steps - 1), steps + 1)]
        answer = http.post(f"/episodes/{name}/steps", content=orjson.dumps(again))
        if answer.status_code != 200 or answer.json()["step_index"] != steps:
            killed.violations.append(f"{name} does not go on at step {steps}: {answer.text}")
        answer = http.post(f"/episodes/{name}/end", json={"reason": "truncated"})
        if answer.status_code != 200:
            killed.violations.append(f"{name} does not end: {answer.text}")
    answer = http.delete(f"/episodes/{name}")
    if answer.status_code >= 300:
        killed.violations.append(f"{name} cannot be deleted: {answer.text}")


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    found = kill_again_and_again(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.buffer.write(orjson.dumps(found))
