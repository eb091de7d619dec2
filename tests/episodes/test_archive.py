"""Compressed logs: the same lines back, any of them alone, every flipped or cut byte found, crashes harmless."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from brain_service.episodes import archive
from brain_service.episodes.archive import Archive, compress_log
from brain_service.episodes.log_format import encode_line
from brain_service.episodes.logger import EpisodeLogger
from brain_service.errors import CorruptDataError
from tests.episodes.bodies import JSON, as_json, begin, open_store, step


def record(folder: Path, steps: int = 5, episode_id: str = "e", floats: int = 3) -> Path:
    """Record an episode of smooth values and end it."""
    rng = np.random.default_rng(0)
    with EpisodeLogger(folder) as logger:
        logger.start_episode(episode_id=episode_id)
        for index in range(steps):
            state = np.round(np.sin(0.01 * index + np.arange(floats)) + 1e-3 * rng.standard_normal(floats), 4)
            logger.log_step({"state": state.astype(np.float32)}, {"command": [0.25]}, timestamp_ns=index)
        return logger.end_episode()


@pytest.fixture
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "FRAME_TEXT_BYTES", 500)


def test_zstdcat_reads_an_archive_and_our_reader_any_line(tmp_path: Path, small_frames: None) -> None:
    path = record(tmp_path, 40)
    text = path.read_bytes()
    done = compress_log(path)
    assert done == path.with_name("e.jsonl.zst")
    assert not path.exists()
    with Archive(done) as opened:
        assert b"".join(opened.texts()) == text
        assert (opened.size_bytes, opened.sha256) == (len(text), hashlib.sha256(text).hexdigest())
        assert opened.last_line() == text.splitlines(keepends=True)[-1]
    if shutil.which("zstdcat"):
        assert subprocess.run(["zstdcat", str(done)], capture_output=True, check=True).stdout == text
    with zstandard.ZstdDecompressor().stream_reader(done.open("rb"), read_across_frames=True) as reader:
        assert reader.read() == text


@given(start=st.integers(0, 45), count=st.integers(0, 45))
def test_lines_come_back_alone_as_they_come_back_together(
    tmp_path_factory: pytest.TempPathFactory, start: int, count: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "ranges"
    path = folder / "e.jsonl.zst"
    if not path.exists():
        before, archive.FRAME_TEXT_BYTES = archive.FRAME_TEXT_BYTES, 500
        compress_log(record(folder, 40))
        archive.FRAME_TEXT_BYTES = before
    with Archive(path) as opened:
        lines = list(opened.read_lines())
        assert len(lines) == opened.lines == 42
        assert list(opened.read_lines(start, start + count)) == lines[start : start + count]


def test_a_range_reads_only_its_frames(tmp_path: Path, small_frames: None) -> None:
    done = compress_log(record(tmp_path, 200))
    assert done is not None
    with Archive(done) as opened:
        middle = opened._frames[len(opened._frames) // 2]
    data = bytearray(done.read_bytes())
    data[middle.offset + 10] ^= 1
    done.write_bytes(data)
    with Archive(done) as opened:
        assert len(list(opened.read_lines(0, 5))) == 5
        opened.last_line()
        with pytest.raises(CorruptDataError, match="fails its checksum"):
            list(opened.read_lines(middle.first_line, middle.first_line + 1))


def test_every_flipped_byte_and_every_cut_is_found(tmp_path: Path, small_frames: None) -> None:
    done = compress_log(record(tmp_path, 6))
    assert done is not None
    whole = done.read_bytes()
    damaged = tmp_path / "damaged.jsonl.zst"

    def accepted(data: bytes) -> bool:
        damaged.write_bytes(data)
        try:
            with Archive(damaged) as opened:
                list(opened.read_lines())
        except CorruptDataError:
            return False
        return True

    assert accepted(whole)
    for place in range(len(whole)):
        for bit in (0, 7):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            assert not accepted(bytes(changed)), f"a flip of bit {bit} of byte {place} of {len(whole)} passed"
        assert not accepted(whole[:place]), f"a cut at byte {place} of {len(whole)} passed"
        assert not accepted(whole[place:] if place else whole + b"\0"), f"a lost head of {place} bytes passed"


def test_a_damaged_or_open_log_is_not_compressed(tmp_path: Path) -> None:
    path = record(tmp_path, 5)
    whole = path.read_bytes()
    for data in (
        whole.replace(b'"step_index":3', b'"step_index":4'),
        whole[:-60],
        whole.rsplit(b"\n", 2)[0] + b"\n",
        b"",
    ):
        path.write_bytes(data)
        with pytest.raises(CorruptDataError):
            compress_log(path)
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
        assert path.read_bytes() == data


def test_an_archive_that_the_medium_garbles_never_replaces_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record(tmp_path, 5)
    text = path.read_bytes()
    real = os.fsync

    def garble(fd: int) -> None:
        real(fd)
        for temporary in tmp_path.glob(".*.tmp"):
            data = bytearray(temporary.read_bytes())
            data[10] ^= 4
            temporary.write_bytes(data)

    monkeypatch.setattr(os, "fsync", garble)
    with pytest.raises(CorruptDataError):
        compress_log(path)
    assert path.read_bytes() == text
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("call", ["rename", "unlink"])
def test_a_crash_at_the_exchange_leaves_the_log(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record(tmp_path, 5)
    text = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, call, lambda *_, **__: (_ for _ in ()).throw(OSError(5, "power")))
        with pytest.raises(OSError, match="power"):
            compress_log(path)
    assert path.read_bytes() == text
    assert compress_log(path) is not None


@pytest.mark.parametrize("moment", ["_same", "fsync_directory"])
@pytest.mark.parametrize("again", [False, True])
def test_a_log_deleted_meanwhile_leaves_no_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, again: bool
) -> None:
    """Deleted while it is compared, or when the archive has just got its name; then the id may be used again."""
    with open_store(tmp_path, compress_after_s=None) as store:
        store.append_json(begin(store, 3, episode_id="a"), as_json(step(3)), JSON)
        store.end("a")
        really, deleted = getattr(archive, moment), list[str]()

        def delete_then(*arguments: object) -> object:
            found = really(*arguments)
            if not deleted:
                deleted.append("a")
                store.delete("a")
                if again:
                    begin(store, 2, episode_id="a")
            return found

        monkeypatch.setattr(archive, moment, delete_then)
        with pytest.raises(FileNotFoundError):
            compress_log(tmp_path / "a.jsonl")
        assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"] * again
        assert [(item["episode_id"], item["steps"]) for item in store.list()[0]] == [("a", 2)] * again


def test_stopping_leaves_the_log(tmp_path: Path, small_frames: None) -> None:
    path = record(tmp_path, 20)
    asked = iter([False, False, True])
    assert compress_log(path, stopping=lambda: next(asked)) is None
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_was_written_is_counted(tmp_path: Path) -> None:
    written: list[int] = []
    done = compress_log(record(tmp_path, 5), wrote=written.append)
    assert done is not None
    assert sum(written) == done.stat().st_size


def test_a_line_longer_than_a_frame_is_kept(tmp_path: Path, small_frames: None) -> None:
    path = tmp_path / "e.jsonl"
    lines = [encode_line({"type": "step", "text": "x" * n}) for n in (1, 2000, 1, 499, 500, 501)]
    text = b"".join([*lines, encode_line({"type": "end"})])
    path.write_bytes(text)
    done = compress_log(path)
    assert done is not None
    with Archive(done) as opened:
        assert b"".join(opened.read_lines()) == text
