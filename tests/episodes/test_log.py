"""The file itself: locks, exclusive creation, and media that refuse."""

import errno
import fcntl
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from brain_service.episodes.log import EpisodeFile
from brain_service.errors import ConflictError, NotFoundError, UnavailableError


def test_a_new_log_appears_whole_and_only_once(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    file = EpisodeFile.create(path, b"header\n")
    assert file.append(b"one\ntwo\n") == len(b"header\n")
    with pytest.raises(ConflictError, match="exists"):
        EpisodeFile.create(path, b"other\n")
    file.close()
    file.close()
    assert path.read_bytes() == b"header\none\ntwo\n"
    assert list(tmp_path.iterdir()) == [path]


def test_the_lock_keeps_another_process_out_until_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    EpisodeFile.create(path, b"header\n").close()
    script = f"""
        import pathlib
        from brain_service.episodes.log import EpisodeFile
        file = EpisodeFile.open(pathlib.Path({str(path)!r}))
        print("locked", flush=True)
        input()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(ConflictError, match="another process"):
            EpisodeFile.open(path)
        holder.kill()
    EpisodeFile.open(path).close()


def test_closed_and_missing_files_say_so(tmp_path: Path) -> None:
    file = EpisodeFile.create(tmp_path / "e.jsonl", b"header\n")
    file.close()
    file.sync()
    with pytest.raises(ConflictError, match="closed"):
        file.append(b"late\n")
    with pytest.raises(NotFoundError, match="nothing"):
        EpisodeFile.open(tmp_path / "nothing.jsonl")
    with pytest.raises(UnavailableError, match="create episode"):
        EpisodeFile.create(tmp_path / "no" / "folder" / "e.jsonl", b"header\n")


def test_a_file_system_without_locks_is_named_and_keeps_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    EpisodeFile.create(tmp_path / "e.jsonl", b"header\n").close()

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(UnavailableError, match="lock episode 'e'"):
        EpisodeFile.open(tmp_path / "e.jsonl")
    assert os.listdir("/proc/self/fd") == before


def test_a_full_device_is_named() -> None:
    file = EpisodeFile.open(Path("/dev/full"))
    with pytest.raises(UnavailableError, match="disk is full"):
        file.append(b"line\n")
    file.close()


def test_after_a_failed_flush_the_file_takes_nothing_more(tmp_path: Path) -> None:
    """The null device takes writes and refuses to flush them, as a dying card does."""
    file = EpisodeFile(tmp_path / "e.jsonl", os.open("/dev/null", os.O_RDWR), 0)
    file.append(b"line\n")
    for _ in range(2):
        with pytest.raises(UnavailableError, match="flush"):
            file.sync()
    with pytest.raises(UnavailableError, match="tries again by itself"):
        file.append(b"line\n")
    with pytest.raises(UnavailableError, match="flush"):
        file.revive(0, lambda _: True)
    assert file.failed is not None
    file.close()


def test_a_write_that_fits_in_part_leaves_no_part(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel take the first bytes of a write and refuse the rest."""
    script = f"""
        import pathlib, resource
        from brain_service.errors import UnavailableError
        from brain_service.episodes.log import EpisodeFile
        file = EpisodeFile.create(pathlib.Path({str(tmp_path / "e.jsonl")!r}), b"header\\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        file.append(b"a" * 899 + b"\\n")
        for _ in range(2):
            try:
                file.append(b"b" * 199 + b"\\n")
            except UnavailableError as error:
                print(error.detail)
        file.append(b"fits\\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        file.append(b"c" * 199 + b"\\n")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("file size limit") == 2
    expected = b"header\n" + b"a" * 899 + b"\nfits\n" + b"c" * 199 + b"\n"
    assert (tmp_path / "e.jsonl").read_bytes() == expected
