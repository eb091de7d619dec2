"""Atomic writes: a reader sees the old or the new whole, and a failure leaves the old."""

import os
import random
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from brain_service.durable import make_directory, publish_directory, remove_tree, replace_symlink, write_atomic
from tests.fakes.disk import watched
from tests.fakes.medium import Medium
from tests.fakes.recording import Recording
from tests.fakes.sectors import Fate


def test_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_does_not_fit_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")
    script = """
        import signal, sys
        from pathlib import Path
        from brain_service.durable import write_atomic
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            write_atomic(Path(sys.argv[1]), bytes(1 << 20))
        except OSError as error:
            sys.exit(error.errno)
    """
    limit = 64 * 1024
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode != 0
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_never_shows_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, bytes([0]) * 200_000)
    script = """
        import sys
        from pathlib import Path
        from brain_service.durable import write_atomic
        print("go", flush=True)
        for n in range(1, 1 << 30):
            write_atomic(Path(sys.argv[1]), bytes([n % 256]) * 200_000)
    """
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(path)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            for _ in range(50):
                data = path.read_bytes()
                assert len(data) == 200_000
                assert len(set(data)) == 1
            writer.kill()
        data = path.read_bytes()
        assert len(data) == 200_000
        assert len(set(data)) == 1


def test_a_published_directory_appears_whole_and_is_never_overwritten(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "file").write_text(name)
    publish_directory(tmp_path / "first", tmp_path / "deep" / "final")
    assert (tmp_path / "deep" / "final" / "sub" / "file").read_text() == "first"
    with pytest.raises(FileExistsError):
        publish_directory(tmp_path / "second", tmp_path / "deep" / "final")
    assert (tmp_path / "second").exists()
    remove_tree(tmp_path / "second")
    assert sorted(os.listdir(tmp_path)) == ["deep"]


def test_a_link_moves_in_one_step(tmp_path: Path) -> None:
    link = tmp_path / "active"
    for target in ("one", "two"):
        replace_symlink(link, target)
        assert os.readlink(link) == target
    assert sorted(os.listdir(tmp_path)) == ["active"]


def test_a_made_directory_hangs_on_no_unflushed_entry(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    with watched(tmp_path, recording):
        make_directory(tmp_path / "a" / "b" / "c")
        make_directory(tmp_path / "a" / "b" / "c")
    medium = Medium(recording)
    for event in recording.events:
        medium.play(event)
    assert sorted(medium.survive(Fate("lost", "lost"), random.Random(0))) == ["a", "a/b", "a/b/c"]


def test_a_file_in_the_place_of_a_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        make_directory(tmp_path / "a")
