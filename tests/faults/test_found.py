"""What the faults have found, one test a finding, without the chance that found it."""

import errno
import os
import pickle
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest

from brain_service.episodes import open_episodes, recovery
from brain_service.episodes.flusher import Flusher
from brain_service.episodes.images import ImageStore
from brain_service.episodes.log import EpisodeFile
from brain_service.episodes.log_format import encode_line
from brain_service.episodes.logger import EpisodeLogger
from brain_service.episodes.open_episodes import OpenEpisodes
from brain_service.episodes.publishing import publish_document
from brain_service.episodes.recovery import scan, sweep
from brain_service.errors import UnavailableError
from brain_service.settings import CaptureSettings
from tests.episodes.bodies import begin, open_store
from tests.fakes.disk import watched
from tests.fakes.medium import Medium
from tests.fakes.recording import Recording
from tests.fakes.sectors import Fate
from tests.faults.robots import body
from tests.pictures import picture


def survivors(recording: Recording) -> list[str]:
    """Return which files a power cut leaves at the end of a recording that loses every unflushed entry."""
    medium = Medium(recording)
    for event in recording.events:
        medium.play(event)
    return sorted(medium.survive(Fate("lost", "lost"), random.Random(0)))


def test_a_log_that_was_listed_as_damaged_before_its_recovery_is_listed_after_it(tmp_path: Path) -> None:
    with open_store(tmp_path / "elsewhere") as store:
        torn = begin(store, 2)
    log = (tmp_path / "elsewhere" / f"{torn}.jsonl").read_bytes().replace(b'"reward":0.0', b'"reward":9.0')
    with open_store(tmp_path / "here") as store:
        (tmp_path / "here" / f"{torn}.jsonl").write_bytes(log)
        assert store.list()[0] == []
        store.append_json(torn, orjson.dumps(body(torn, 0)))
        assert [item["episode_id"] for item in store.list()[0]] == [torn]


def test_a_block_of_another_episode_is_cut_although_its_checksums_hold(tmp_path: Path) -> None:
    """File systems without ordered data (FAT) may show the blocks of deleted files behind the end of a log."""
    with open_store(tmp_path) as store:
        ours, theirs = begin(store, 1), begin(store, 3)
    stale = (tmp_path / f"{theirs}.jsonl").read_bytes().splitlines(keepends=True)[2]
    with (tmp_path / f"{ours}.jsonl").open("ab") as file:
        file.write(stale)
    found = scan(tmp_path / f"{ours}.jsonl")
    assert len(found.offsets) == 1
    assert found.problem is not None
    assert "belongs to episode" in found.problem
    with open_store(tmp_path) as store:
        assert store.get(ours)["steps"] == 1


def test_an_end_line_that_counts_other_steps_is_no_end(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        episode = begin(store, 2)
    path = tmp_path / f"{episode}.jsonl"
    end = encode_line({"type": "end", "reason": "truncated", "steps": 3, "ended_ns": 1, "episode_id": episode})
    path.write_bytes(path.read_bytes() + end)
    found = scan(path)
    assert found.end is None
    assert len(found.offsets) == 2


def test_a_document_is_on_the_medium_before_the_log_that_it_replaces_is_removed(tmp_path: Path) -> None:
    """Its writer was killed between giving it its name and flushing that; the next logger tidies up."""
    root = tmp_path / "episodes"
    with EpisodeLogger(root, min_free_bytes=0) as logger:
        logger.start_episode(episode_id="both")
        logger.log_step({"x": 1}, {"a": 1})
        log = logger.end_episode()
    kept = log.read_bytes()
    document = publish_document(log).read_bytes()
    (root / "both.json").unlink()
    log.write_bytes(kept)
    recording = Recording(tmp_path)
    with watched(tmp_path, recording):
        (root / ".new.tmp").write_bytes(document)
        (root / ".new.tmp").rename(root / "both.json")
        with EpisodeLogger(root, format="json", min_free_bytes=0):
            assert not log.exists()
    assert "episodes/both.json" in survivors(recording)


def test_a_creation_repeated_after_a_kill_is_answered_when_it_is_on_the_medium(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "episodes"
    root.mkdir()
    recording = Recording(tmp_path, skips=lambda call: call.kind == "sync")
    with watched(tmp_path, recording), open_store(root) as store:
        store.create({"episode_id": "kept"}, "key")
    assert "episodes/kept.jsonl" not in survivors(recording)
    monkeypatch.setattr(OpenEpisodes, "recover_all", lambda *_: None)
    again = pickle.loads(pickle.dumps(recording))
    with watched(tmp_path, again, first_handle=1000), open_store(root) as store:
        assert store.create({"episode_id": "kept"}, "key").episode_id == "kept"
        assert "episodes/kept.jsonl" in survivors(again)


def test_who_flushes_images_while_another_does_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of an episode found nothing left to flush, for the flusher was at it, and was answered too early."""
    images = ImageStore(tmp_path / "e.images")
    images.put(picture(1))
    began, gate, done = threading.Event(), threading.Event(), threading.Event()
    real_fsync = os.fsync

    def slow_fsync(fd: int) -> None:
        began.set()
        assert gate.wait(10)
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    first = threading.Thread(target=images.sync)
    first.start()
    assert began.wait(10)

    def flush_too() -> None:
        images.sync()
        done.set()

    second = threading.Thread(target=flush_too)
    second.start()
    assert not done.wait(0.1)
    gate.set()
    for thread in (first, second):
        thread.join()
    assert done.is_set()


def test_an_odd_left_over_keeps_no_log_from_being_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder, a dangling link, and a file that another user owns, all named as left-over files are."""
    with open_store(tmp_path) as store:
        episodes = {begin(store, 2), begin(store, 2)}
    (tmp_path / ".a.tmp").mkdir()
    (tmp_path / ".b.tmp").symlink_to("nowhere")
    for name in (".c.tmp", ".d.tmp"):
        (tmp_path / name).write_bytes(b"")
    for path in tmp_path.glob(".*.tmp"):
        os.utime(path, (1, 1), follow_symlinks=False)
    really = os.open

    def another_users(path: os.PathLike[str] | str, flags: int, *more: int, **others: int) -> int:
        if Path(path).name == ".c.tmp":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return really(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", another_users)
    with open_store(tmp_path, recover_idle_s=0.05) as store:
        give_up_s = time.monotonic() + 10
        while {store.get(name)["state"] for name in episodes} != {"recovered"}:
            assert time.monotonic() < give_up_s
            time.sleep(0.01)
    assert sorted(path.name for path in tmp_path.glob(".*.tmp")) == [".a.tmp", ".b.tmp", ".c.tmp"]
    assert ".c.tmp is left over" in caplog.text


def test_a_defect_in_one_recovery_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with open_store(tmp_path) as store:
        for name in ("a", "b", "c"):
            begin(store, 2, episode_id=name)
    recover = recovery.recover

    def defective(path: Path) -> object:
        if path.stem == "b":
            raise KeyError("defect")
        return recover(path)

    monkeypatch.setattr(open_episodes, "recover", defective)
    with open_store(tmp_path) as store:
        status = store.status()
    assert [report["episode_id"] for report in status["recoveries"]] == ["c", "a"]
    assert "'b' cannot be recovered" in status["last_error"]
    assert "Traceback" in caplog.text


def test_who_opens_a_log_that_could_not_be_opened_waits_for_who_is_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt fails, the second one is at it, and the third was told that another process writes it."""
    with open_store(tmp_path) as store:
        episode = begin(store, 1)
    recover = recovery.recover
    waits, fails, first, second = (threading.Event() for _ in range(4))
    calls: list[Path] = []

    def slow(path: Path) -> object:
        calls.append(path)
        if len(calls) == 1:
            first.set()
            assert fails.wait(10)
            raise UnavailableError("the medium refuses")
        found = recover(path)
        second.set()
        waits.wait(0.5)
        return found

    monkeypatch.setattr(open_episodes, "recover", slow)
    opened = OpenEpisodes(tmp_path, CaptureSettings(min_free_bytes=0), Flusher(1.0))
    with ThreadPoolExecutor(3) as pool:
        failing = pool.submit(opened.find, episode)
        assert first.wait(10)
        going_on = pool.submit(opened.find, episode)
        time.sleep(0.05)
        fails.set()
        assert second.wait(10)
        waiting = pool.submit(opened.find, episode)
        with pytest.raises(UnavailableError):
            failing.result()
        writer = going_on.result()
        assert writer is not None
        assert waiting.result() is writer
    assert len(calls) == 2
    opened.close()


def test_clearing_a_new_logs_first_name_away_locks_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its creator was killed between giving it its name and removing the first one."""
    with open_store(tmp_path) as store:
        episode = begin(store, 1)
    first_name = tmp_path / f".{episode}.jsonl.0a1b2c3d.tmp"
    first_name.hardlink_to(tmp_path / f"{episode}.jsonl")
    os.utime(first_name, (1, 1))
    monkeypatch.setattr(EpisodeFile, "open", None)
    sweep(tmp_path)
    assert not first_name.exists()
    assert (tmp_path / f"{episode}.jsonl").exists()
