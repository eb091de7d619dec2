"""The model of the medium itself: what flushes make certain, and what stays open without them."""

import contextlib
import os
import random
from collections.abc import Callable
from pathlib import Path

from tests.fakes.disk import watched
from tests.fakes.failing import FailingRecording
from tests.fakes.medium import Medium
from tests.fakes.recording import Recording, Tree
from tests.fakes.sectors import Fate

EVERY = [
    Fate(data, entries) for data in ("lost", "kept", "torn", "mixed") for entries in ("lost", "kept", "mixed")
]


def outcomes(root: Path, act: Callable[[], None], watcher: Recording | None = None) -> list[Tree]:
    """Return many states that may be found after a power cut at the end of `act`."""
    recording = watcher or Recording(root)
    with watched(root, recording):
        act()
    medium = Medium(recording)
    for event in recording.events:
        medium.play(event)
    rng = random.Random(0)
    return [medium.survive(fate, rng) for fate in EVERY for _ in range(40)]


def contents(found: list[Tree], name: str) -> set[bytes | None]:
    return {tree.get(name) for tree in found}


def test_a_file_without_any_flush_may_be_gone_empty_zero_or_whole(tmp_path: Path) -> None:
    def act() -> None:
        (tmp_path / "a").write_bytes(b"x" * 600)

    found = outcomes(tmp_path, act)
    seen = contents(found, "a")
    assert {None, b"", b"x" * 600, bytes(600)} <= seen
    assert b"x" * 512 + bytes(88) in seen, "a later sector may be missing"
    assert bytes(512) + b"x" * 88 in seen, "or an earlier one"


def test_an_fsync_of_the_file_saves_its_data_and_not_its_entry(tmp_path: Path) -> None:
    def act() -> None:
        fd = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, b"x" * 600, 0)
        os.fsync(fd)
        os.close(fd)

    assert contents(outcomes(tmp_path, act), "a") == {None, b"x" * 600}


def test_an_fsync_of_the_folder_saves_the_entry_and_not_the_data(tmp_path: Path) -> None:
    def act() -> None:
        (tmp_path / "a").write_bytes(b"x" * 600)
        fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)

    seen = contents(outcomes(tmp_path, act), "a")
    assert None not in seen
    assert {b"", b"x" * 600} <= seen


def test_a_flush_covers_what_came_before_and_nothing_after(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")

    def act() -> None:
        fd = os.open(tmp_path / "a", os.O_RDWR)
        os.pwrite(fd, b"1" * 100, 0)
        os.fdatasync(fd)
        os.pwrite(fd, b"2" * 100, 100)
        os.close(fd)

    seen = contents(outcomes(tmp_path, act), "a")
    assert all(content is not None and content.startswith(b"1" * 100) for content in seen)
    assert {b"1" * 100, b"1" * 100 + bytes(100), b"1" * 100 + b"2" * 100} <= seen
    assert any(content is not None and 100 < len(content) < 200 for content in seen), "torn at any byte"


def test_a_rename_replaces_as_one_but_may_bring_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def act() -> None:
        (tmp_path / "b").write_bytes(b"new")
        (tmp_path / "b").replace(tmp_path / "a")

    seen = contents(outcomes(tmp_path, act), "a")
    assert {b"old", b"", b"new"} <= seen
    assert None not in seen


def test_a_new_folder_hangs_on_its_parents_flush(tmp_path: Path) -> None:
    def act() -> None:
        (tmp_path / "d").mkdir()
        fd = os.open(tmp_path / "d" / "a", os.O_RDWR | os.O_CREAT)
        os.fsync(fd)
        os.close(fd)
        folder = os.open(tmp_path / "d", os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)

    found = outcomes(tmp_path, act)
    assert {} in found
    assert all("d/a" in tree for tree in found if "d" in tree)


def test_a_removed_file_may_come_back_until_the_folder_is_flushed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    assert contents(outcomes(tmp_path, (tmp_path / "a").unlink), "a") == {None, b"old"}


def test_after_a_failed_flush_a_second_one_saves_nothing_but_what_is_written_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"")

    def act(name: str, again: bool) -> None:
        fd = os.open(tmp_path / name, os.O_RDWR)
        os.pwrite(fd, b"x" * 600, 0)
        try:
            os.fdatasync(fd)
        except OSError:
            if again:
                os.pwrite(fd, b"x" * 600, 0)
            os.fdatasync(fd)
        os.close(fd)

    seen = contents(outcomes(tmp_path, lambda: act("a", False), FailingRecording(tmp_path, {0})), "a")
    assert {b"", bytes(600)} <= seen
    assert contents(outcomes(tmp_path, lambda: act("b", True), FailingRecording(tmp_path, {0})), "b") == {
        b"x" * 600
    }


def test_dropped_pages_read_as_the_medium_holds_them(tmp_path: Path) -> None:
    """Of a flush that failed, what it should have saved reads as zeros; of one that did not, all is there."""

    def act(number: int, length: int) -> None:
        fd = os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, b"1" * 100, 0)
        os.fsync(fd)
        os.pwrite(fd, b"2" * 50, 100)
        with contextlib.suppress(OSError):
            os.fsync(fd)
        os.fsync(fd)
        assert os.pread(fd, 200, 0) == b"1" * 100 + b"2" * 50
        os.posix_fadvise(fd, 0, length, os.POSIX_FADV_DONTNEED)
        os.close(fd)

    to_the_end = 0
    for number, fails, length, kept in (
        (0, {1}, 4096, bytes(50)),
        (1, {1}, to_the_end, bytes(50)),
        (2, (), 4096, b"2" * 50),
    ):
        with watched(tmp_path, FailingRecording(tmp_path, fails)):
            act(number, length)
        assert (tmp_path / str(number)).read_bytes() == b"1" * 100 + kept
