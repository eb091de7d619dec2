"""Lives of robots for the power cuts: what is recorded, in which order, and what the robots are told."""

import asyncio
import contextlib
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from brain_service.episodes.answers import Appended
from brain_service.episodes.archive import compress_log
from brain_service.episodes.logger import EpisodeLogger
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import BrainError, UnavailableError
from brain_service.settings import CaptureSettings, RetentionSettings
from tests.fakes.recording import Recording
from tests.faults.robots import body

__all__ = [
    "Robot",
    "archive_life",
    "failing_death",
    "failing_life",
    "go_on_after_a_kill",
    "image_life",
    "logger_life",
    "recover_only",
    "retention_life",
    "store_life",
]

_KIND = "application/msgpack"
_DURABILITIES = ("interval", "step", "episode")


@contextlib.contextmanager
def _store(root: Path, retention: RetentionSettings | None = None, **settings: Any) -> Iterator[EpisodeStore]:
    options = {"min_free_bytes": 0, "sync_interval_s": 0.003, "compress_after_s": None, **settings}
    store = EpisodeStore(root, CaptureSettings(**options), retention=retention, database=root.parent / "brain.db")
    store.start()
    try:
        assert store.wait_recovered(30)
        yield store
    finally:
        store.close()


class Robot:
    """One robot's client of a store: appends its episode's next steps and notes in the recording what it hears."""

    def __init__(self, store: EpisodeStore, heard: Recording, episode_id: str) -> None:
        self.episode_id = episode_id
        self.steps = 0
        self._store = store
        self._heard = heard

    def create(self, **members: Any) -> None:
        """Create the episode."""
        self._heard.say("creating", self.episode_id)
        self._store.create({"episode_id": self.episode_id, **members})
        self._heard.say("created", self.episode_id)

    def append(self, count: int, *, repeat: int = 0) -> None:
        """Append `count` steps in one request that begins with the last `repeat` ones again."""
        bodies = [body(self.episode_id, index) for index in range(self.steps - repeat, self.steps + count)]
        self._heard.say("sent", self.episode_id, self.steps + count - 1)
        content = msgspec.msgpack.encode(bodies if len(bodies) > 1 else bodies[0])
        if self.steps % 2:
            done = self._store.append_json(self.episode_id, content, _KIND)
        else:
            done = asyncio.run(self._ingest(content))
        self.steps += count
        self._heard.say("accepted", self.episode_id, done.step_index)
        self._heard.say("durable", self.episode_id, done.durable_through)

    async def _ingest(self, content: bytes) -> Appended:
        """Append as the routes and the stream do."""
        found = await self._store.ingest(self.episode_id, [content], _KIND)
        if found.error is not None:
            raise found.error
        assert found.appended is not None
        return found.appended

    def insist(self, count: int) -> None:
        """Append steps one by one, each until it is taken."""
        give_up_s = time.monotonic() + 20
        for _ in range(count):
            while True:
                try:
                    self.append(1)
                    break
                except UnavailableError:
                    # Perhaps accepted and not durable: then a step of the same index is a retry.
                    assert time.monotonic() < give_up_s
                    time.sleep(0.02)

    def ask(self) -> None:
        """Ask how far the episode is durable."""
        self._heard.say("durable", self.episode_id, self._store.get(self.episode_id)["durable_through"])

    def end(self, reason: str) -> None:
        """End the episode."""
        self._heard.say("ending", self.episode_id, reason)
        self._store.end(self.episode_id, reason)
        self._heard.say("ended", self.episode_id, reason)

    def delete(self) -> None:
        """Delete the episode."""
        self._heard.say("deleting", self.episode_id)
        self._store.delete(self.episode_id)
        self._heard.say("deleted", self.episode_id)


def store_life(root: Path, heard: Recording, rng: random.Random) -> None:
    """Several robots at once on one store, every durability; some end, some of those are deleted; one restart."""
    names = iter(f"robot{number}-{rng.randrange(10**6)}" for number in range(100))
    for _ in range(2):
        with _store(root) as store:
            robots: list[Robot] = []
            for _ in range(24):
                act = rng.random()
                if len(robots) < 2 or (act < 0.1 and len(robots) < 5):
                    robots.append(Robot(store, heard, next(names)))
                    robots[-1].create(durability=rng.choice(_DURABILITIES))
                    continue
                robot = rng.choice(robots)
                if act < 0.8:
                    robot.append(rng.choice((1, 1, 1, 4)), repeat=min(robot.steps, rng.choice((0, 0, 0, 2))))
                elif act < 0.85:
                    robot.ask()
                else:
                    robots.remove(robot)
                    robot.end(rng.choice(("terminated", "truncated")))
                    if rng.random() < 0.5:
                        robot.delete()


def logger_life(root: Path, heard: Recording, rng: random.Random) -> None:
    """A robot's own process with `EpisodeLogger`: one episode after another, in both formats."""
    for number, form in enumerate(("jsonl", "json", "json")):
        with EpisodeLogger(
            root,
            format="json" if form == "json" else "jsonl",
            durability=rng.choice(_DURABILITIES),
            min_free_bytes=0,
        ) as logger:
            name = f"logger{number}-{rng.randrange(10**6)}"
            if form == "json":
                heard.say("document", name)
            heard.say("creating", name)
            logger.start_episode(episode_id=name)
            heard.say("created", name)
            for index in range(rng.randrange(1, 6)):
                sent = body(name, index)
                heard.say("sent", name, index)
                done = logger.log_step(
                    sent["observation"], sent["action"], sent["reward"], timestamp_ns=sent["timestamp_ns"]
                )
                heard.say("accepted", name, done.step_index)
                heard.say("durable", name, done.durable_through)
            heard.say("ending", name, "truncated")
            logger.end_episode()
            heard.say("ended", name, "truncated")


def image_life(root: Path, heard: Recording, rng: random.Random) -> None:
    """Robots with a camera: pictures that repeat and pictures that do not, an end, a deletion."""
    with _store(root) as store:
        robots = [Robot(store, heard, f"camera{number}-{rng.randrange(10**6)}") for number in range(3)]
        for robot, durability in zip(robots, _DURABILITIES, strict=True):
            robot.create(durability=durability)
        for _ in range(9):
            robot = rng.choice(robots)
            robot.append(rng.choice((1, 1, 2)), repeat=min(robot.steps, rng.choice((0, 0, 1))))
        for robot in robots[:2]:
            robot.end("truncated")
        robots[0].delete()


def archive_life(root: Path, heard: Recording, rng: random.Random) -> None:
    """Closed logs are compressed while another robot records; one archive is deleted."""
    with _store(root) as store:
        robots = [Robot(store, heard, f"archived{number}-{rng.randrange(10**6)}") for number in range(3)]
        for robot in robots:
            robot.create(durability=rng.choice(_DURABILITIES))
            robot.append(3)
        for robot in robots[:2]:
            robot.end("terminated")
        for path in sorted(root.glob("archived[01]*.jsonl")):
            robots[2].append(1)
            compress_log(path)  # as housekeeping does
        robots[0].delete()
        robots[2].append(2)


def retention_life(root: Path, heard: Recording, rng: random.Random) -> None:
    """More is recorded than may be kept: the oldest go, with their images."""
    bounds = RetentionSettings(
        max_total_bytes=9000, keep_free_bytes=None, delete_unconverted=True, delete_not_uploaded=True
    )
    with _store(root, bounds) as store:
        for number in range(4):
            robot = Robot(store, heard, f"{rng.choice(('camera', 'robot'))}{number}-{rng.randrange(10**6)}")
            robot.create(durability=rng.choice(_DURABILITIES))
            robot.append(3)
            # From here on retention may take it at any moment.
            heard.say("deleting", robot.episode_id)
            robot.end("truncated")
        plan = store.apply_retention()
        for planned in plan.doomed:
            heard.say("deleted", planned.episode_id)


def failing_life(root: Path, heard: Recording, rng: random.Random) -> None:
    """Robots that resend what is refused while flushes fail (see `FailingRecording`), and end once they work."""
    with _store(root) as store:
        robots = [Robot(store, heard, f"failing{number}-{rng.randrange(10**6)}") for number in range(2)]
        for robot, durability in zip(robots, ("interval", "step"), strict=True):
            robot.create(durability=durability)
        for count in (1, 3, 1, 1, 2):
            for robot in robots:
                robot.insist(count)
            time.sleep(0.005)
        for robot in robots:
            robot.end("truncated")


def failing_death(root: Path, heard: Recording, rng: random.Random) -> None:
    """Robots, one with a camera, record until flushes fail (see `FailingRecording`); then it is killed."""
    with _store(root) as store:
        robots = [Robot(store, heard, f"{name}{rng.randrange(10**6)}") for name in ("robot", "camera")]
        for robot in robots:
            robot.create()
        for count in (1, 2, 1, 3, 1):
            for robot in robots:
                with contextlib.suppress(UnavailableError):
                    robot.append(count)
                robot.ask()
            time.sleep(0.01)
        heard.die()


def recover_only(root: Path, heard: Recording, known: Iterable[str]) -> None:
    """Start on what is there, say what is durable now that it was recovered, and stop."""
    with _store(root) as store:
        for episode_id in sorted(known):
            with contextlib.suppress(BrainError):
                heard.say("durable", episode_id, store.get(episode_id)["durable_through"])


def go_on_after_a_kill(root: Path, heard: Recording) -> None:
    """Start after a kill: every open episode goes on for some steps; then the process ends in good order."""
    with _store(root) as store:
        for item in store.list()[0]:
            robot = Robot(store, heard, item["episode_id"])
            robot.steps = item["steps"]
            heard.say("sent", robot.episode_id, robot.steps - 1)
            heard.say("durable", robot.episode_id, item["durable_through"])
            heard.say("created", robot.episode_id)
            if item["state"] != "open":
                robot.end(item["state"])
            else:
                robot.append(2, repeat=min(1, robot.steps))
                robot.ask()
    with EpisodeLogger(root, format="json", min_free_bytes=0):
        pass  # tidies up what a logger before it left behind
