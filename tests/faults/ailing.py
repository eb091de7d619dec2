"""A robot on a daemon whose medium fails for a while: what is refused, what goes on, what is there afterwards."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from brain_service.durable import replace_symlink
from tests.faults.faulty_daemon import FaultyDaemon
from tests.faults.judge import Promise
from tests.faults.robots import body, differs

__all__ = ["FAULTS", "Course", "Fault", "crawl", "serving_a_toy", "suffer", "summary"]

_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Fault:
    """What the medium does: see `FaultyDaemon.fail`. `durability` is the episode's."""

    name: str
    error: str | None
    calls: tuple[str, ...] = ()
    after: int = 0
    delay_s: float = 0.0
    lose: bool = False
    durability: str = "interval"


FAULTS = (
    Fault("full at every write", "ENOSPC", ("write",)),
    Fault("full at the third write", "ENOSPC", ("write",), after=2, durability="step"),
    Fault("full at every write, step", "ENOSPC", ("write",), durability="step"),
    Fault("input/output errors at every write", "EIO", ("write",)),
    Fault("read-only", "EROFS"),
    Fault("flushes fail", "EIO", ("fdatasync", "sync")),
    Fault("flushes fail, step", "EIO", ("fdatasync", "sync"), durability="step"),
    Fault("flushes fail and lose what they held", "EIO", ("fdatasync", "sync"), lose=True),
    Fault(
        "flushes fail and lose what they held, step", "EIO", ("fdatasync", "sync"), lose=True, durability="step"
    ),
    Fault("writes and truncations fail", "EIO", ("write", "truncate")),
)


@dataclass(slots=True)
class Course:
    """What one fault did. Times in seconds; `acted` counts the actions that were answered while it lasted."""

    accepted: int = 0
    durable_lost: int = 0
    accepted_lost: int = 0
    refused: int = 0
    acted: int = 0
    slowest_livez_s: float = 0.0
    recovery_s: float = 0.0
    problems: list[str] = field(default_factory=list)


@contextmanager
def serving_a_toy(folder: Path) -> Iterator[FaultyDaemon]:
    """Run a faulty daemon that serves a toy model."""
    from tests.inference.toy import build_toy

    models = folder / "brain" / "models"
    models.mkdir(parents=True)
    replace_symlink(models / "active", build_toy(models))
    daemon = FaultyDaemon(folder / "brain", env={"BRAIN_INFERENCE__BACKENDS": "cpu"})
    daemon.start()
    try:
        give_up_s = time.monotonic() + 120
        while httpx.get(f"{daemon.url}/readyz", params={"for": "inference"}).status_code != 200:
            assert time.monotonic() < give_up_s, "the toy model is not served"
            time.sleep(0.1)
        yield daemon
    finally:
        daemon.heal()
        daemon.stop()


class _Driver(threading.Thread):
    """A robot's other half: asks for actions and for `/livez` all the time, whatever the medium does."""

    def __init__(self, url: str, course: Course) -> None:
        super().__init__(daemon=True)
        self._http = httpx.Client(base_url=url, timeout=_PATIENCE_S)
        self._course = course
        self._done = threading.Event()

    def run(self) -> None:
        """Act until stopped."""
        from tests.inference.toy import as_tree, toy_observation

        rng = np.random.default_rng(0)
        session = self._http.post("/sessions", json={}).json()["session_id"]
        step = 0
        while not self._done.wait(0.01):
            asked: dict[str, Any] = {"session_id": session, "step": step, "deadline_ms": 5000}
            answer = self._http.post("/infer", json=asked | {"observation": as_tree(toy_observation(rng))})
            if answer.status_code != 200:
                self._course.problems.append(f"no action: {answer.status_code} {answer.text}")
                return
            step += 1
            began_s = time.perf_counter()
            self._http.get("/livez")
            self._course.slowest_livez_s = max(self._course.slowest_livez_s, time.perf_counter() - began_s)
            self._course.acted = step

    def stop(self) -> None:
        """Stop, and give the session back."""
        self._done.set()
        self.join()
        self._http.close()


class _Recorder:
    """A robot that records one step after the other and resends what was refused."""

    def __init__(self, http: httpx.Client, course: Course, name: str, durability: str) -> None:
        self.promise = Promise()
        self.name = name
        self._http = http
        self._course = course
        http.post("/episodes", json={"episode_id": name, "durability": durability}).raise_for_status()

    def try_step(self) -> httpx.Response:
        """Send the next step that is not accepted; check the form of a refusal."""
        index = self.promise.accepted + 1
        answer = self._http.post(f"/episodes/{self.name}/steps", json=body(self.name, index))
        if answer.status_code == 200:
            heard = answer.json()
            self.promise.accepted = heard["step_index"]
            self.promise.durable = max(self.promise.durable, heard["durable_through"])
        elif answer.status_code == 409 and "next_step_index" in answer.json():
            # The daemon stands elsewhere: steps that it had not called durable are gone with the medium's pages.
            next_index = answer.json()["next_step_index"]
            self._course.accepted_lost += max(0, self.promise.accepted + 1 - next_index)
            self.promise.accepted = next_index - 1
            if next_index <= self.promise.durable:
                self._course.durable_lost += self.promise.durable + 1 - next_index
        else:
            self._course.refused += 1
            if answer.status_code != 503 or not answer.headers.get("retry-after"):
                self._course.problems.append(
                    f"refused as {answer.status_code} {dict(answer.headers)} {answer.text}"
                )
        return answer

    def record(self, count: int) -> None:
        """Record `count` steps that must all be taken."""
        goal = self.promise.accepted + count
        give_up_s = time.monotonic() + _PATIENCE_S
        while self.promise.accepted < goal:
            answer = self.try_step()
            assert time.monotonic() < give_up_s, answer.text
            if answer.status_code != 200:
                time.sleep(0.05)


def suffer(daemon: FaultyDaemon, fault: Fault, name: str, fault_s: float = 1.0) -> Course:
    """Record, let the medium fail for `fault_s` seconds while the robot goes on, heal it, compare every step."""
    course = Course()
    driver = _Driver(daemon.url, course)
    with httpx.Client(base_url=daemon.url, timeout=_PATIENCE_S) as http:
        robot = _Recorder(http, course, name, fault.durability)
        robot.record(30)
        driver.start()
        daemon.fail(fault.error, fault.calls, after=fault.after, delay_s=fault.delay_s, lose=fault.lose)
        until_s = time.monotonic() + fault_s
        reasons: set[str] = set()
        while time.monotonic() < until_s or not (course.refused and reasons):
            robot.try_step()
            if (check := http.get("/health").json()["checks"]["capture"][0])["status"] == "fail":
                reasons.add(check["output"])
            if time.monotonic() > until_s + _PATIENCE_S:
                course.problems.append(f"refused {course.refused} times, /health says {reasons}")
                break
            time.sleep(0.02)
        daemon.heal()
        healed_s = time.perf_counter()
        robot.record(1)
        _wait_for_health(http, course)
        course.recovery_s = time.perf_counter() - healed_s
        robot.record(30)
        driver.stop()
        ended = http.post(f"/episodes/{name}/end", json={"reason": "truncated"})
        if ended.status_code != 200:
            course.problems.append(f"does not end: {ended.text}")
        _compare(http, robot, course)
    return course


def _wait_for_health(http: httpx.Client, course: Course) -> None:
    give_up_s = time.monotonic() + _PATIENCE_S
    while (check := http.get("/health").json()["checks"]["capture"][0])["status"] == "fail":
        if time.monotonic() > give_up_s:
            course.problems.append(f"/health does not get well: {check}")
            return
        time.sleep(0.02)


def _compare(http: httpx.Client, robot: _Recorder, course: Course) -> None:
    steps = http.get(f"/episodes/{robot.name}/steps", params={"limit": 1000}).json()["steps"]
    course.accepted = robot.promise.accepted + 1
    if len(steps) != course.accepted:
        course.problems.append(f"{len(steps)} steps are stored, {course.accepted} were accepted")
    course.problems += [text for index, step in enumerate(steps) if (text := differs(step, robot.name, index))]


def summary(courses: Sequence[Course]) -> Course:
    """Return the sums, and the slowest of each time."""
    total = Course()
    for course in courses:
        for name in ("accepted", "durable_lost", "accepted_lost", "refused", "acted"):
            setattr(total, name, getattr(total, name) + getattr(course, name))
        total.slowest_livez_s = max(total.slowest_livez_s, course.slowest_livez_s)
        total.recovery_s = max(total.recovery_s, course.recovery_s)
        total.problems += course.problems
    return total


def crawl(daemon: FaultyDaemon, delay_s: float = 0.5, crawl_s: float = 3.0) -> tuple[Course, int]:
    """Let every write take `delay_s` seconds while eight robots send as fast as they can.

    Returns what happened and by how many bytes the daemon's memory grew.
    """
    course = Course()
    process = psutil.Process(daemon.process.pid)
    names = [f"slow{number}" for number in range(8)]
    with httpx.Client(base_url=daemon.url, timeout=_PATIENCE_S) as http:
        robots = [_Recorder(http, course, name, "interval") for name in names]
        driver = _Driver(daemon.url, course)
        driver.start()
        daemon.fail(None, ("write",), delay_s=delay_s)
        before = process.memory_info().rss
        until_s = time.monotonic() + crawl_s

        def push(robot: _Recorder) -> None:
            while time.monotonic() < until_s:
                robot.try_step()

        threads = [threading.Thread(target=push, args=(robot,)) for robot in robots]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        grown = process.memory_info().rss - before
        daemon.heal()
        healed_s = time.perf_counter()
        for robot in robots:
            robot.record(5)
        course.recovery_s = time.perf_counter() - healed_s
        driver.stop()
        for robot in robots:
            http.post(f"/episodes/{robot.name}/end", json={}).raise_for_status()
            _compare(http, robot, course)
        course.accepted = sum(robot.promise.accepted + 1 for robot in robots)
    return course, grown
