"""A log whose flush failed comes back by itself: its lines are written anew, what the kernel lost is reported."""

import contextlib
import errno
import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brain_service.episodes.log import EpisodeFile
from brain_service.episodes.offsets import StepOffsets
from brain_service.episodes.reader import read_episode
from brain_service.errors import ConflictError, CorruptDataError, UnavailableError
from tests.episodes.bodies import JSON, as_json, begin, open_store, step
from tests.fakes.disk import Call, watched


class Refusing:
    """A medium that refuses to flush while `broken` is set."""

    def __init__(self) -> None:
        self.broken = threading.Event()
        self.refused = 0

    def before(self, call: Call) -> bool:
        if call.kind == "sync" and not call.is_folder and self.broken.is_set():
            self.refused += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return True

    def after(self, call: Call, done: int | None) -> None:
        return None


def wait_until(condition: Callable[[], Any]) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up, "nothing happened within 20 s"
        time.sleep(0.01)


def test_the_log_takes_steps_again_once_the_medium_does(tmp_path: Path) -> None:
    medium = Refusing()
    with watched(tmp_path, medium), open_store(tmp_path, sync_interval_s=0.01) as store:
        episode = begin(store, 2)
        wait_until(lambda: store.get(episode)["durable_through"] == 1)
        medium.broken.set()
        store.append_json(episode, as_json([step(2), step(3)]), JSON)
        wait_until(lambda: store.status()["last_error"] is not None)
        for call in (
            lambda: store.append_json(episode, as_json(step(4)), JSON),
            lambda: store.end(episode, "truncated"),
        ):
            with pytest.raises(UnavailableError, match="tries again by itself"):
                call()
        assert store.get(episode)["durable_through"] == 1
        medium.broken.clear()
        wait_until(lambda: store.get(episode)["durable_through"] == 3)
        assert store.append_json(episode, as_json(step(4)), JSON).step_index == 4
        assert store.status()["last_error"] is None
        assert store.status()["recoveries"] == []
        assert store.end(episode, "truncated").steps == 5
    assert len(read_episode(tmp_path / f"{episode}.jsonl")) == 5


def test_steps_that_the_kernel_dropped_are_cut_off_and_told(tmp_path: Path) -> None:
    medium = Refusing()
    with watched(tmp_path, medium), open_store(tmp_path, sync_interval_s=0.01) as store:
        episode = begin(store, 3)
        path = tmp_path / f"{episode}.jsonl"
        wait_until(lambda: store.get(episode)["durable_through"] == 2)
        durable_bytes = path.stat().st_size
        medium.broken.set()
        store.append_json(episode, as_json([step(i) for i in range(3, 7)]), JSON)
        wait_until(lambda: medium.refused)
        line_bytes = (path.stat().st_size - durable_bytes) // 4
        fd = os.open(path, os.O_WRONLY)
        os.pwrite(fd, bytes(40), durable_bytes + 2 * line_bytes + 100)
        os.close(fd)
        medium.broken.clear()
        wait_until(lambda: store.status()["recoveries"])
        (report,) = store.status()["recoveries"]
        assert (report["episode_id"], report["steps"], report["lines_lost"]) == (episode, 5, 2)
        with pytest.raises(ConflictError) as gap:
            store.append_json(episode, as_json(step(7)), JSON)
        assert gap.value.members["next_step_index"] == 5
        assert store.append_json(episode, as_json([step(i) for i in range(4, 9)]), JSON).step_index == 8
        assert store.end(episode).steps == 9
    assert len(read_episode(path)) == 9


def test_steps_behind_a_loss_are_found_where_they_stand_now(tmp_path: Path) -> None:
    """The places of lost steps are forgotten with them: one is kept for every 64th step."""
    medium = Refusing()
    with watched(tmp_path, medium), open_store(tmp_path, sync_interval_s=0.01) as store:
        episode = begin(store, 3)
        path = tmp_path / f"{episode}.jsonl"
        wait_until(lambda: store.get(episode)["durable_through"] == 2)
        medium.broken.set()
        store.append_json(episode, as_json([step(i) for i in range(3, 300)]), JSON)
        wait_until(lambda: medium.refused)
        lost_from = sum(map(len, path.read_bytes().splitlines(keepends=True)[: 1 + 140]))
        fd = os.open(path, os.O_WRONLY)
        os.pwrite(fd, bytes(40), lost_from + 20)
        os.close(fd)
        medium.broken.clear()
        wait_until(lambda: store.status()["recoveries"])
        assert store.get(episode)["steps"] == 140
        longer = [step(i, reward=1 / 3, executed_action={"command": [1 / 3, 1 / 7]}) for i in range(140, 400)]
        store.append_json(episode, as_json(longer), JSON)
        for index in (0, 64, 128, 139, 140, 191, 192, 256, 320, 399):
            (found,) = store.steps(episode, index, 1)
            assert found["step_metadata"]["step_index"] == index
            assert ("executed_action" in found) == (index >= 140)
        assert store.append_json(episode, as_json(longer[60]), JSON).step_index == 200, "a retry is recognised"


def test_all_steps_lost_leave_an_episode_that_begins_anew(tmp_path: Path) -> None:
    medium = Refusing()
    with watched(tmp_path, medium), open_store(tmp_path, sync_interval_s=0.01) as store:
        episode = begin(store)
        path = tmp_path / f"{episode}.jsonl"
        header_bytes = path.stat().st_size
        medium.broken.set()
        store.append_json(episode, as_json(step(0, is_terminal=True)), JSON)
        wait_until(lambda: medium.refused)
        os.truncate(path, header_bytes)
        medium.broken.clear()
        wait_until(lambda: store.status()["recoveries"])
        other = {"observation": {"x": 1}, "action": {"a": 1}}
        assert store.append_json(episode, as_json([other, other]), JSON).step_index == 1
        assert store.end(episode).steps == 2
    assert sorted(read_episode(path).observation) == ["x"]


def test_who_waits_for_the_medium_is_told_that_it_refused(tmp_path: Path) -> None:
    medium = Refusing()
    with watched(tmp_path, medium), open_store(tmp_path, durability="step") as store:
        episode = begin(store, 1)
        medium.broken.set()
        with pytest.raises(UnavailableError, match="was accepted but cannot flush"):
            store.append_json(episode, as_json(step(1)), JSON)
        medium.broken.clear()
        wait_until(lambda: store.get(episode)["durable_through"] == 1)
        assert store.append_json(episode, as_json(step(1)), JSON).durable_through == 1
        assert store.append_json(episode, as_json(step(2)), JSON).durable_through == 2


def test_a_step_resent_after_its_flush_failed_is_answered_by_the_next_flush(tmp_path: Path) -> None:
    """It is stored already, so nothing but trying the flush again will ever tell the robot."""
    medium = Refusing()
    with watched(tmp_path, medium), open_store(tmp_path, durability="step") as store:
        episode = begin(store, 1)
        medium.broken.set()
        with pytest.raises(UnavailableError):
            store.append_json(episode, as_json(step(1)), JSON)
        medium.broken.clear()
        answers: list[int] = []

        def resend() -> None:
            while not answers:
                with contextlib.suppress(UnavailableError):
                    answers.append(store.append_json(episode, as_json(step(1)), JSON).durable_through)

        robot = threading.Thread(target=resend, daemon=True)
        robot.start()
        robot.join(10)
        assert answers == [1]


def test_an_end_that_was_not_flushed_is_taken_back(tmp_path: Path) -> None:
    """Else the step that the robot sends next would stand behind the end of its episode."""
    medium = Refusing()
    with watched(tmp_path, medium), open_store(tmp_path, durability="episode") as store:
        episode = begin(store, 2)
        medium.broken.set()
        with pytest.raises(UnavailableError):
            store.end(episode, "truncated")
        medium.broken.clear()
        wait_until(lambda: store.get(episode)["durable_through"] == 1)
        assert store.append_json(episode, as_json(step(2)), JSON).step_index == 2
        assert store.end(episode, "truncated").steps == 3
    assert len(read_episode(tmp_path / f"{episode}.jsonl")) == 3


def test_a_store_closes_while_the_medium_refuses(tmp_path: Path) -> None:
    medium = Refusing()
    with watched(tmp_path, medium):
        with open_store(tmp_path) as store:
            episode = begin(store, 2)
            medium.broken.set()
        medium.broken.clear()
        with open_store(tmp_path) as store:
            assert store.get(episode)["steps"] == 2


@pytest.mark.parametrize("size", [1, 900_000])
def test_long_lines_are_written_anew_in_pieces(tmp_path: Path, size: int) -> None:
    file = EpisodeFile.create(tmp_path / "e.jsonl", b"header\n")
    lines = [bytes([65 + n]) * size * (n + 1) + b"\n" for n in range(4)]
    file.append(b"".join(lines))
    seen: list[bytes] = []

    def is_whole(line: bytes) -> bool:
        seen.append(line)
        return line[:1] != b"D"

    kept = len(b"header\n") + sum(map(len, lines[:3]))
    assert file.revive(len(b"header\n"), is_whole) == kept == file.size_bytes
    assert seen == lines
    assert (tmp_path / "e.jsonl").read_bytes() == b"header\n" + b"".join(lines[:3])
    file.close()
    assert file.revive(0, is_whole) == kept


def test_offsets_of_many_lines_are_found_from_few() -> None:
    lines = [b"x" * (n % 7) + b"\n" for n in range(1000)]
    data = b"".join(lines)
    offsets = StepOffsets()
    at = [0, *itertools.accumulate(map(len, lines))]
    for offset in at[:-1]:
        offsets.append(offset)

    def read(offset: int, length: int) -> bytes:
        return data[offset : offset + min(length, 50)]

    for index in (0, 1, 63, 64, 65, 999, 500, 501, 502, 130, 129):
        assert offsets.locate(index, read) == at[index]
    offsets.cut(130)
    assert len(offsets) == 130
    assert offsets.locate(129, read) == at[129]
    for offset in at[130:200]:
        offsets.append(offset)
    assert offsets.locate(192, read) == at[192]
    offsets.cut(0)
    offsets.append(7)
    assert (len(offsets), offsets.locate(0, read)) == (1, 7)
    with pytest.raises(CorruptDataError):
        StepOffsets.locate(offsets, 40, lambda *_: b"")
