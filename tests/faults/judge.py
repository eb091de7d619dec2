"""Holds what a recovered folder of episodes contains against what clients were told before the power went."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import orjson

from brain_service.episodes.catalogue import find_log
from brain_service.episodes.reader import read_episodes
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import BrainError, NotFoundError
from brain_service.settings import CaptureSettings
from tests.fakes.recording import Claim
from tests.faults.robots import body, differs, has_camera, seen

__all__ = ["Promise", "Verdict", "judge", "promises"]


@dataclass(slots=True)
class Promise:
    """What clients know of one episode: the highest index accepted, the highest durable, and how it stands.

    `sent` is the highest index that anybody tried to append; more than that can never be there.
    """

    sent: int = -1
    accepted: int = -1
    durable: int = -1
    created: bool = False
    deleting: bool = False
    deleted: bool = False
    document: bool = False
    ending: str | None = None
    ended: str | None = None


@dataclass(slots=True)
class Verdict:
    """What was found wrong.

    `durable` counts the durable steps that were looked for, `accepted_lost` those above that are gone: allowed.
    """

    violations: list[str] = field(default_factory=list)
    accepted_lost: int = 0
    durable: int = 0
    recoveries: int = 0
    recovery_s: list[float] = field(default_factory=list)

    def add(self, other: "Verdict") -> None:
        """Take another verdict in."""
        self.violations += other.violations
        self.accepted_lost += other.accepted_lost
        self.durable += other.durable
        self.recoveries += other.recoveries
        self.recovery_s += other.recovery_s


def promises(claims: Iterable[Claim]) -> dict[str, Promise]:
    """Sum up what was said, by episode."""
    found: dict[str, Promise] = defaultdict(Promise)
    for claim in claims:
        known = found[claim.episode_id]
        if claim.kind in ("sent", "accepted", "durable"):
            setattr(known, claim.kind, max(getattr(known, claim.kind), claim.value))
        elif claim.kind in ("ending", "ended"):
            setattr(known, claim.kind, claim.value)
        elif claim.kind != "creating":
            setattr(known, claim.kind, True)
    return found


def judge(root: Path, known: dict[str, Promise]) -> Verdict:
    """Start the real store on `root`, let it recover, and compare; then let the robots go on.

    Its catalogue is `brain.db` beside the folder: one that is there may be of any other time than the files.
    Every episode that was created is there, unless its deletion was asked for; every one that ended has stayed
    ended; no step up to `durable_through` is lost; and whatever is there is as it was sent.
    """
    verdict = Verdict(recoveries=1)
    settings = CaptureSettings(min_free_bytes=0, sync_interval_s=60, compress_after_s=None)
    store = EpisodeStore(root, settings, database=root.parent / "brain.db")
    began_s = time.perf_counter()
    store.start()
    try:
        if not store.wait_recovered(30):
            verdict.violations.append("recovery does not end")
        verdict.recovery_s.append(time.perf_counter() - began_s)
        _judge_catalogue(store, verdict)
        for episode_id, promise in known.items():
            try:
                _judge_episode(store, root, episode_id, promise, verdict)
            except BrainError as error:
                verdict.violations.append(f"{episode_id}: {type(error).__name__} {error.detail}")
        leftovers = [path.name for path in root.glob(".*.tmp")]
        if leftovers:
            verdict.violations.append(f"left behind: {leftovers}")
    finally:
        store.close()
    return verdict


def _judge_catalogue(store: EpisodeStore, verdict: Verdict) -> None:
    """The list must say what the files say, whatever the database held."""
    items, _ = store.list(1000)
    for item in items:
        try:
            found = store.get(item["episode_id"])
        except BrainError as error:
            found = {"error": error.detail}
        wrong = [name for name in ("state", "steps", "durable_through") if item[name] != found.get(name)]
        if wrong:
            verdict.violations.append(f"{item['episode_id']} is listed with another {', '.join(wrong)}: {found}")


def _judge_episode(store: EpisodeStore, root: Path, episode_id: str, promise: Promise, verdict: Verdict) -> None:
    if promise.document and (root / f"{episode_id}.json").exists():
        _judge_document(root / f"{episode_id}.json", episode_id, promise, verdict)
        return
    try:
        summary = store.get(episode_id)
    except NotFoundError:
        if promise.created and not promise.deleting:
            verdict.violations.append(f"{episode_id} was created and is gone")
        return
    if episode_id not in {item["episode_id"] for item in store.list(1000)[0]}:
        verdict.violations.append(f"{episode_id} is there and not listed")
    if promise.deleted:
        verdict.violations.append(f"{episode_id} was deleted and is back")
        return
    steps = int(summary["steps"])
    _judge_count(episode_id, steps, promise, verdict)
    if promise.ended is not None and (summary["state"], steps) != (promise.ended, promise.sent + 1):
        verdict.violations.append(f"{episode_id} ended as {promise.ended}, now it is {summary['state']}")
    if summary["state"] not in ("open", promise.ending):
        verdict.violations.append(f"{episode_id} is {summary['state']}, which nobody asked for")
    _judge_records(episode_id, steps, store.steps(episode_id, 0, steps + 1), verdict)
    if summary["state"] == "open":
        _go_on(store, episode_id, steps, verdict)
    if steps:
        path = find_log(root, episode_id)
        (episode,) = read_episodes(path)
        if len(episode) < steps:
            verdict.violations.append(f"the reader sees {len(episode)} of {steps} steps of {episode_id}")
        if has_camera(episode_id):
            pictures = list(episode.observation["camera"])
            if pictures != [seen(index) for index in range(len(pictures))]:
                verdict.violations.append(f"{episode_id} has other pictures than were sent")


def _judge_count(episode_id: str, steps: int, promise: Promise, verdict: Verdict) -> None:
    if steps - 1 < promise.durable:
        verdict.violations.append(f"{episode_id} has {steps} steps, step {promise.durable} was durable")
    if steps - 1 > promise.sent:
        verdict.violations.append(f"{episode_id} has {steps} steps, {promise.sent + 1} were sent")
    verdict.durable += promise.durable + 1
    verdict.accepted_lost += max(0, promise.accepted - (steps - 1))


def _judge_records(episode_id: str, steps: int, records: list[dict[str, Any]], verdict: Verdict) -> None:
    if len(records) != steps:
        verdict.violations.append(f"{episode_id} has {steps} steps, {len(records)} can be read")
    for index, record in enumerate(records):
        if wrong := differs(record, episode_id, index):
            verdict.violations.append(wrong)


def _judge_document(path: Path, episode_id: str, promise: Promise, verdict: Verdict) -> None:
    try:
        document = orjson.loads(path.read_bytes())
    except ValueError as error:
        verdict.violations.append(f"the document of {episode_id} is damaged: {error}")
        return
    _judge_count(episode_id, len(document["steps"]), promise, verdict)
    _judge_records(episode_id, promise.sent + 1, document["steps"], verdict)
    with contextlib.suppress(StopIteration):
        next(read_episodes(path))


def _go_on(store: EpisodeStore, episode_id: str, steps: int, verdict: Verdict) -> None:
    """A robot resends from where the daemon stands, and ends; its step must be durable once that is answered."""
    done = store.append_json(episode_id, msgspec.msgpack.encode(body(episode_id, steps)), "application/msgpack")
    if done.step_index != steps:
        verdict.violations.append(f"{episode_id} went on at {done.step_index} instead of {steps}")
    if store.end(episode_id, "truncated").steps != steps + 1:
        verdict.violations.append(f"{episode_id} ended with another number of steps")
