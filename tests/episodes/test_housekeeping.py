"""What nobody waits for: one file that fails holds up no other, and no defect ends the thread."""

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from brain_service.episodes import archive, housekeeping
from brain_service.episodes.housekeeping import Housekeeper
from brain_service.episodes.library import Library
from brain_service.episodes.reader import episode_digest
from brain_service.episodes.retention import HeldEpisodes
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import UnavailableError
from tests.episodes.bodies import begin, open_store

NAMES = frozenset(("a.jsonl", "b.jsonl", "c.jsonl"))


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A folder of three closed logs: `a` is the oldest and the largest."""
    with open_store(tmp_path, compress_after_s=None) as store:
        for name, steps in (("a", 40), ("b", 2), ("c", 2)):
            begin(store, steps, episode_id=name)
            store.end(name)
    return tmp_path


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "_TICK_S", 0.01)


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < give_up_s, "nothing happened within 15 s"
        time.sleep(0.01)


def compressed(store: EpisodeStore) -> set[str]:
    return {name for name in ("a", "b", "c") if store.get(name)["compressed"]}


def test_a_log_that_cannot_be_read_holds_up_no_other(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, reads = archive._chunks, [0]

    def fail(path: Path) -> Iterator[tuple[int, bytes]]:
        if path.name == "a.jsonl":
            reads[0] += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return chunks(path)

    monkeypatch.setattr(archive, "_chunks", fail)
    with open_store(closed, compress_after_s=0) as store:
        wait_until(lambda: compressed(store) == {"b", "c"})
        wait_until(lambda: "the medium fails" in store.status()["failed_tasks"].get("compression", ""))
        time.sleep(0.1)
        assert reads == [1], "it is left alone for a minute"
        monkeypatch.setattr(archive, "_chunks", chunks)
        monkeypatch.setattr(housekeeping, "_MINUTE_S", 0.0)
        for key in (house := store._house)._later:
            house._later[key] = (0.0, None)
        wait_until(lambda: compressed(store) == {"a", "b", "c"})
        wait_until(lambda: "compression" not in store.status()["failed_tasks"])


def test_a_log_that_there_is_no_room_for_holds_up_no_smaller_one(
    closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = (closed / "a.jsonl").stat().st_size - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with open_store(closed, compress_after_s=0) as store:
        wait_until(lambda: compressed(store) == {"b", "c"})
        assert store.status()["failed_tasks"] == {}


def test_a_log_from_the_future_is_compressed_and_a_fresh_one_is_not(closed: Path) -> None:
    """Written while the clock was a year ahead, it would wait for a year."""
    now_s = time.time()
    for name, age_s in (("a", -365 * 86_400), ("b", 200), ("c", 0)):
        os.utime(closed / f"{name}.jsonl", (now_s - age_s, now_s - age_s))
    with open_store(closed, compress_after_s=100) as store:
        wait_until(lambda: compressed(store) == {"a", "b"})
        time.sleep(0.1)
        assert compressed(store) == {"a", "b"}


def test_a_digest_that_cannot_be_read_holds_up_no_other(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = episode_digest

    def fail(path: Path) -> str:
        if path.name == "a.jsonl":
            raise UnavailableError("cannot read a.jsonl")
        return digest(path)

    monkeypatch.setattr(housekeeping, "episode_digest", fail)
    monkeypatch.setattr(HeldEpisodes, "refresh", lambda held: setattr(held, "names", NAMES))
    with open_store(closed, compress_after_s=None) as store:
        wait_until(lambda: store.status()["failed_tasks"].get("datasets") == "cannot read a.jsonl")
        assert store._library.ask(lambda index: index.without_digest()) == [("a", "a.jsonl")]
        assert store.retention_plan().doomed == ()


@pytest.mark.parametrize(("place", "name"), [(Library, "mend"), (Housekeeper, "retain")])
def test_a_defect_in_one_task_ends_no_other(
    closed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: type, name: str
) -> None:
    def defective(*_: object) -> None:
        raise KeyError("defect")

    monkeypatch.setattr(place, name, defective)
    with open_store(closed, compress_after_s=0) as store:
        wait_until(lambda: compressed(store) == {"a", "b", "c"})
        wait_until(lambda: "KeyError('defect')" in store.status()["failed_tasks"].values())
        assert store._house._thread.is_alive()
    assert caplog.text.count("Traceback") == 1, "it is told once, not with every round"
