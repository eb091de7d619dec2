"""What only the kernel's cache still has after a failed flush is brought to the medium, and none of it is lost."""

import contextlib
import errno
import os
import random
from pathlib import Path

import pytest

from brain_service.episodes.page_cache import bring_file_to_medium, bring_to_medium
from tests.fakes.disk import watched
from tests.fakes.failing import FailingRecording
from tests.fakes.medium import Medium
from tests.fakes.recording import End
from tests.fakes.sectors import Fate

CHUNK = 1024 * 1024


def survivor(recording: FailingRecording, name: str) -> bytes | None:
    """Return a file as a power cut leaves it that takes all that no flush covered."""
    medium = Medium(recording)
    for event in recording.events:
        medium.play(event)
    return medium.survive(Fate("lost", "kept"), random.Random(0)).get(name)


def write_and_fail(path: Path, data: bytes) -> None:
    """Write a file whose flush fails, as a process does that is killed next."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, data, 0)
    with contextlib.suppress(OSError):
        os.fsync(fd)
    os.close(fd)


@pytest.mark.parametrize("size_bytes", [1, 700, CHUNK, 2 * CHUNK + 5])
def test_what_a_failed_flush_dropped_is_written_anew(tmp_path: Path, size_bytes: int) -> None:
    data = random.Random(size_bytes).randbytes(size_bytes)
    recording = FailingRecording(tmp_path, {0})
    with watched(tmp_path, recording):
        write_and_fail(tmp_path / "a", data)
        bring_file_to_medium(tmp_path / "a")
    assert survivor(recording, "a") == data == (tmp_path / "a").read_bytes()


def test_only_what_the_medium_lacks_is_written(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(3 * CHUNK)
    (tmp_path / "a").write_bytes(data)
    recording = FailingRecording(tmp_path, {0})
    with watched(tmp_path, recording):
        write_and_fail(tmp_path / "a", data[:-1] + b"x")
        bring_file_to_medium(tmp_path / "a", 2 * CHUNK + 77)
    written = [event.change.call for event in recording.events if isinstance(event, End)]
    assert {call.offset for call in written if call.kind == "write"} == {0, 2 * CHUNK}, "0 is the first writer's"
    assert (survivor(recording, "a") or b"")[2 * CHUNK :] == data[2 * CHUNK : -1] + b"x"


def test_what_the_medium_cannot_even_read_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"held")
    fd, pread, pwrite = os.open(tmp_path / "a", os.O_RDWR), os.pread, os.pwrite
    reads, written = [0], list[bytes]()

    def second_fails(fd: int, length: int, offset: int) -> bytes:
        reads[0] += 1
        if reads[0] == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, length, offset)

    def note(fd: int, data: bytes, offset: int) -> int:
        written.append(bytes(data))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pread", second_fails)
    monkeypatch.setattr(os, "pwrite", note)
    bring_to_medium(fd)
    os.close(fd)
    assert written == [b"held"]


def test_a_medium_that_still_refuses_says_so_and_takes_nothing(tmp_path: Path) -> None:
    with watched(tmp_path, FailingRecording(tmp_path, range(3))):
        write_and_fail(tmp_path / "a", b"held" * 300)
        with pytest.raises(OSError, match="Input/output"):
            bring_file_to_medium(tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == b"held" * 300
        bring_file_to_medium(tmp_path / "a")


def test_a_file_that_may_only_be_read_is_flushed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = FailingRecording(tmp_path, {0})
    with watched(tmp_path, recording):
        write_and_fail(tmp_path / "a", b"")
        really, flushes = os.open, len(recording.events)

        def another_users(path: Path, flags: int) -> int:
            if flags & os.O_RDWR:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return really(path, flags)

        monkeypatch.setattr(os, "open", another_users)
        bring_file_to_medium(tmp_path / "a")
    assert "sync" in {event.change.call.kind for event in recording.events[flushes:] if isinstance(event, End)}
