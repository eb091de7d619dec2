"""When a flush happens, who waits for it, and what a failed one does."""

import os
import threading
import time
from pathlib import Path

import pytest

from brain_service.episodes.flusher import Flusher
from brain_service.episodes.header import EpisodeHeader
from brain_service.episodes.log import EpisodeFile
from brain_service.episodes.recovery import LogScan
from brain_service.episodes.schema import StepIn
from brain_service.episodes.writer import EpisodeWriter
from brain_service.errors import UnavailableError
from brain_service.settings import CaptureSettings
from tests.episodes.bodies import JSON, as_json, open_store, step


class Counted:
    """A thing to flush that counts, and takes as long as its gate is closed."""

    def __init__(self) -> None:
        self.flushes = 0
        self.began = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def sync(self) -> None:
        self.began.set()
        self.gate.wait(10)
        self.flushes += 1


def test_notes_during_a_flush_share_the_next_one() -> None:
    flusher, target = Flusher(60.0), Counted()
    flusher.start()
    target.gate.clear()
    flusher.note(target, urgent=True)
    assert target.began.wait(10)
    for _ in range(50):
        flusher.note(target, urgent=True)
    target.gate.set()
    flusher.close()
    assert target.flushes == 2


def test_closing_flushes_what_is_not_due_yet() -> None:
    flusher, target = Flusher(3600.0), Counted()
    flusher.start()
    flusher.note(target)
    flusher.close()
    assert target.flushes == 1


def test_an_urgent_note_overtakes_the_interval() -> None:
    flusher, target = Flusher(3600.0), Counted()
    flusher.start()
    flusher.note(target)
    flusher.note(target, urgent=True)
    assert target.began.wait(10)
    flusher.close()
    assert target.flushes == 1


@pytest.mark.parametrize(("durability", "durable"), [("step", 0), ("episode", -1), ("interval", -1)])
def test_the_answer_tells_what_is_on_the_medium(tmp_path: Path, durability: str, durable: int) -> None:
    with open_store(tmp_path, sync_interval_s=60) as store:
        episode = store.create({"durability": durability}).episode_id
        assert store.append_json(episode, as_json(step(0)), JSON).durable_through == durable


def test_the_interval_flushes_by_itself(tmp_path: Path) -> None:
    with open_store(tmp_path, sync_interval_s=0.01) as store:
        episode = store.create({}).episode_id
        for index in range(3):
            store.append_json(episode, as_json(step(index)), JSON)
            give_up = time.monotonic() + 10
            while store.get(episode)["durable_through"] < index:
                assert time.monotonic() < give_up
                time.sleep(0.005)


def open_null(folder: Path) -> EpisodeFile:
    """Return a log on the null device: it takes writes, refuses to flush them and forgets them.

    Not locked: other tests and other people's processes use that device too.
    """
    return EpisodeFile(folder / "e.jsonl", os.open("/dev/null", os.O_RDWR), 0)


@pytest.mark.parametrize("durability", ["step", "interval"])
def test_a_failed_flush_is_never_called_durable(durability: str, tmp_path: Path) -> None:
    """The null device accepts writes and refuses fdatasync, as a dying card does."""
    settings = CaptureSettings(durability=durability, min_free_bytes=0, sync_interval_s=0.001)
    flusher = Flusher(settings.sync_interval_s)
    flusher.start()
    file = open_null(tmp_path)
    writer = EpisodeWriter(file, LogScan(EpisodeHeader("e", 0), 0, None), settings, flusher)
    if durability == "step":
        with pytest.raises(UnavailableError, match="was accepted but cannot flush"):
            writer.append([StepIn(**step(0))])
    else:
        assert writer.append([StepIn(**step(0))]).durable_through == -1
        give_up = time.monotonic() + 10
        while writer.failed is None:
            assert time.monotonic() < give_up
            time.sleep(0.005)
    assert writer.durable_through == -1
    for call in (lambda: writer.append([StepIn(**step(1))]), lambda: writer.end("truncated")):
        with pytest.raises(UnavailableError, match="tries again by itself") as refused:
            call()
        assert refused.value.members["retry_after_s"] > 0
    assert writer.ended is None
    writer.close()
    flusher.close()
