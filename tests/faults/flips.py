"""Damage of single bytes: every byte of a file changed, and the file cut at every byte; what do the readers say?

An outcome is fine if an error tells of the damage; or if it is reported as what a crash leaves, an episode without
an end whose steps are the first of those that were recorded. Never fine: a value that nobody sent, or an episode
that looks ended and whole with steps missing.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brain_service.episodes.archive import compress_log
from brain_service.episodes.logger import EpisodeLogger
from brain_service.episodes.reader import read_episodes
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import BrainError
from brain_service.settings import CaptureSettings
from tests.faults.robots import body

__all__ = ["FILES", "Damage", "damage_every_byte"]

STEPS = 3


@dataclass(slots=True)
class Damage:
    """How many damaged files there were, how many were refused, reported as unfinished, or silently wrong."""

    cases: int = 0
    refused: int = 0
    unfinished: int = 0
    harmless: int = 0
    violations: list[str] = field(default_factory=list)


def _log(root: Path, name: str, ended: bool) -> Path:
    with EpisodeLogger(root, durability="episode", min_free_bytes=0) as logger:
        logger.start_episode(episode_id=name)
        for index in range(STEPS):
            sent = body(name, index)
            logger.log_step(sent["observation"], sent["action"], sent["reward"], timestamp_ns=sent["timestamp_ns"])
        if ended:
            return logger.end_episode("truncated")
        path = root / f"{name}.jsonl"
        kept = path.read_bytes()
    path.write_bytes(kept)
    return path


def _open_log(root: Path) -> Path:
    return _log(root, "open", ended=False)


def _closed_log(root: Path) -> Path:
    return _log(root, "closed", ended=True)


def _archive(root: Path) -> Path:
    path = compress_log(_log(root, "archived", ended=True))
    assert path is not None
    return path


def _image(root: Path) -> Path:
    log = _log(root, "camera0", ended=True)
    return next(log.with_suffix(".images").iterdir())


def _document(root: Path) -> Path:
    with EpisodeLogger(root, format="json", min_free_bytes=0) as logger:
        logger.start_episode(episode_id="document")
        for index in range(STEPS):
            sent = body("document", index)
            logger.log_step(sent["observation"], sent["action"], sent["reward"], timestamp_ns=sent["timestamp_ns"])
        return logger.end_episode("truncated")


FILES: dict[str, Callable[[Path], Path]] = {
    "an open log": _open_log,
    "a closed log": _closed_log,
    "a compressed log": _archive,
    "an image": _image,
    "a JSON document": _document,
}


def damage_every_byte(kind: str, root: Path, *, masks: int = 1, recover_every: int = 16) -> Damage:
    """Make a file of this kind, damage each byte with `masks` different changes and cut it there, and read it.

    Every `recover_every`-th case also goes through the start of a store, with its recovery.
    """
    pristine, work = root / "pristine", root / "work"
    pristine.mkdir(parents=True)
    target = FILES[kind](pristine)
    whole, name = target.read_bytes(), target.relative_to(pristine)
    expected = _read(pristine)
    damage, rng = Damage(), random.Random(0)
    shutil.copytree(pristine, work)
    for number, (what, content) in enumerate(_damaged(whole, masks, rng)):
        (work / name).write_bytes(content)
        damage.cases += 1
        _judge(work, what, expected, kind, damage)
        if number % recover_every == 0:
            _recover(work, what, expected, kind, damage)
            shutil.rmtree(work)
            shutil.copytree(pristine, work)
    return damage


def _damaged(whole: bytes, masks: int, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    for place in range(len(whole)):
        for mask in [1 << rng.randrange(8), *(rng.randrange(1, 256) for _ in range(masks - 1))]:
            yield f"byte {place} ^ {mask}", whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :]
        yield f"cut at {place}", whole[:place]


Found = tuple[str | None, list[tuple[Any, ...]]]


def _read(folder: Path) -> Found:
    """Return how the one episode of a folder ended, and all that its steps hold."""
    (path,) = [path for path in folder.iterdir() if path.suffix in (".json", ".jsonl", ".zst")]
    (episode,) = read_episodes(path)
    columns = {**episode.observation, **episode.action}
    rows = [
        (
            *(_plain(column[i]) for column in columns.values()),
            float(episode.reward[i]),
            int(episode.timestamp_ns[i]),
            bool(episode.is_terminal[i]),
        )
        for i in range(len(episode))
    ]
    return episode.end, [(*columns, *row) for row in rows]


def _plain(value: Any) -> bytes | str:
    return value if isinstance(value, bytes | str) else bytes(value.tobytes())


def _judge(folder: Path, what: str, expected: Found, kind: str, damage: Damage) -> None:
    try:
        end, steps = _read(folder)
    except BrainError:
        damage.refused += 1
        return
    except Exception as error:  # noqa: BLE001  (any other one is the finding)
        damage.violations.append(f"{kind}, {what}: {type(error).__name__} {error}")
        return
    if (end, steps) == expected:
        # The reader gave back exactly what was recorded: the byte means nothing to a step.
        damage.harmless += 1
        # In a document the checksum's own name can be hit: then it is one without, its values untouched.
        if kind != "a JSON document":
            damage.violations.append(f"{kind}, {what}: not detected")
    elif end is None and steps == expected[1][: len(steps)]:
        damage.unfinished += 1
    else:
        damage.violations.append(f"{kind}, {what}: read as {len(steps)} steps, ended {end}")


def _recover(folder: Path, what: str, expected: Found, kind: str, damage: Damage) -> None:
    """Start a store on it: what it then calls whole must be whole."""
    store = EpisodeStore(folder, CaptureSettings(min_free_bytes=0, compress_after_s=None))
    store.start()
    try:
        assert store.wait_recovered(30)
        for item in store.list()[0]:
            try:
                records = store.steps(item["episode_id"], 0, 100)
            except BrainError:
                continue
            if len(records) > len(expected[1]) or (
                item["state"] == expected[0] and len(records) < len(expected[1])
            ):
                damage.violations.append(f"{kind}, {what}: {len(records)} steps after recovery, {item['state']}")
            if item["state"] == "open" and item["steps"] < STEPS and not store.status()["recoveries"]:
                damage.violations.append(f"{kind}, {what}: recovery reports nothing")
    finally:
        store.close()
