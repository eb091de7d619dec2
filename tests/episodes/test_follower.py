"""One file's trouble is that file's: the catalogue goes on beside what cannot be read, and keeps nobody waiting.

`/proc/self/mem` is a file whose first byte the kernel answers with EIO.
"""

import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import orjson
import pytest

from brain_service.episodes import catalogue
from brain_service.episodes.index import Filters
from brain_service.episodes.log_format import decode_line, encode_line
from brain_service.episodes.logger import EpisodeLogger
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import ConflictError, CorruptDataError, NotFoundError, UnavailableError
from brain_service.settings import CaptureSettings
from tests.episodes.bodies import JSON, as_json, begin, open_store, step

BAD_SECTOR = "/proc/self/mem"


def reading(root: Path) -> EpisodeStore:
    """Return a store that does only what it is asked for."""
    return EpisodeStore(root / "episodes", CaptureSettings(min_free_bytes=0), database=root / "brain.db")


def record(root: Path, *names: str, **body: Any) -> None:
    (root / "episodes").mkdir(exist_ok=True)
    with EpisodeLogger(root / "episodes") as logger:
        for name in names:
            logger.start_episode(episode_id=name, **body)
            logger.log_step({"x": 1}, {"a": 1})
            logger.end_episode()


def ids(store: EpisodeStore, **filters: Any) -> list[str]:
    return sorted(item["episode_id"] for item in store.list(1000, None, Filters(**filters))[0])


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open no file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def unreadable(path: Path) -> None:
    path.symlink_to(BAD_SECTOR)


@pytest.mark.parametrize("make", [unreadable, Path.mkdir])
def test_an_unreadable_file_is_told_and_the_others_go_on(tmp_path: Path, make: Callable[[Path], None]) -> None:
    record(tmp_path, "a", "b")
    with closing(reading(tmp_path)) as store:
        assert ids(store) == ["a", "b"]
        make(tmp_path / "episodes" / "bad.jsonl")
        record(tmp_path, "c")
        assert ids(store) == ["a", "b", "c"]
        keyed = store.create({"environment_id": "lab"}, "key").episode_id
        assert store.create({"environment_id": "lab"}, "key").episode_id == keyed
        assert store.retention_plan().doomed == ()
        assert "bad" in store.status()["damaged"]["bad"]
        assert store.status()["index_problem"] is None
        with pytest.raises(UnavailableError, match="cannot read episode 'bad'"):
            store.get("bad")


def test_a_file_that_fails_for_a_while_takes_nothing_out_of_the_catalogue(tmp_path: Path) -> None:
    record(tmp_path, "a", "b", "c")
    with closing(reading(tmp_path)) as store:
        store.mark_uploaded(["b"])
        path = tmp_path / "episodes" / "b.jsonl"
        shutil.move(path, tmp_path / "aside")
        unreadable(path)
        store._library.refresh(full=True)
        assert ids(store) == ["a", "b", "c"]
        assert "b" in store.status()["damaged"]
        path.unlink()
        shutil.move(tmp_path / "aside", path)
        store._library.refresh(full=True)
        assert ids(store) == ["a", "b", "c"]
        assert store.status()["damaged"] == {}
        assert store.get("b")["uploaded"]


def test_a_key_whose_episode_cannot_be_read_makes_no_second_one(tmp_path: Path) -> None:
    record(tmp_path, "a")
    with closing(reading(tmp_path)) as store:
        keyed = store.create({"environment_id": "lab"}, "key").episode_id
        store.append_json(keyed, as_json(step(0)), JSON)
        store.end(keyed)
        assert keyed in ids(store)
        path = tmp_path / "episodes" / f"{keyed}.jsonl"
        shutil.move(path, tmp_path / "aside")
        unreadable(path)
        with pytest.raises(UnavailableError):
            store.create({"environment_id": "lab"}, "key")
        path.unlink()
        shutil.move(tmp_path / "aside", path)
        assert store.create({"environment_id": "lab"}, "key").episode_id == keyed


def test_a_look_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    record(tmp_path, "a", "b")
    with closing(reading(tmp_path)) as store:
        assert ids(store) == ["a", "b"]
        record(tmp_path, "c")
        time.sleep(0.1)  # the directory's time is settled: a look that succeeds would be the last one
        with no_descriptors(), pytest.raises(UnavailableError, match="Too many open files"):
            store.list()
        assert ids(store) == ["a", "b", "c"]
        assert store.status()["damaged"] == {}


def test_where_no_file_can_be_opened_no_file_is_to_blame(tmp_path: Path) -> None:
    record(tmp_path, "a")
    logger = EpisodeLogger(tmp_path / "episodes")
    logger.start_episode(episode_id="b")
    logger.log_step({"x": 1}, {"a": 1})
    with closing(reading(tmp_path)) as store:
        time.sleep(0.1)
        assert ids(store, state="open") == ["b"]
        logger.close()
        # Nothing came or went, so it is the file itself that is looked at.
        with no_descriptors(), pytest.raises(UnavailableError, match="Too many open files"):
            store.list()
        assert store.status()["damaged"] == {}
        assert ids(store, state="truncated") == ["a", "b"]


def checksummed(text: bytes) -> bytes:
    body = text.removesuffix(b"}")
    return b'%b,"crc32c":"%08x"}\n' % (body, google_crc32c.value(body))


DEEP = b'{"d":' * 400 + b"1" + b"}" * 400
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no reason": ({}, {"reason": None}),
    "another reason": ({}, {"reason": "tired"}),
    "a reason of lists": ({}, {"reason": [["x"]]}),
    "no steps": ({}, {"steps": None}),
    "steps in words": ({}, {"steps": "many"}),
    "steps below none": ({}, {"steps": -1}),
    "a list for a time": ({}, {"ended_ns": [1]}),
    "a time beyond int64": ({"created_ns": 1e30}, {}),
    "a key that is no text": ({"idempotency_key": {"a": 1}}, {}),
}


@pytest.mark.parametrize("name", [*SHAPES, "deep metadata"])
def test_a_whole_line_of_an_unexpected_shape_is_damage(tmp_path: Path, name: str) -> None:
    record(tmp_path, "a", "b")
    path = tmp_path / "episodes" / "b.jsonl"
    header, first, end = (decode_line(line) for line in path.read_bytes().splitlines(keepends=True))
    in_header, in_end = SHAPES.get(name, ({}, {}))
    line = encode_line(header | in_header)
    if name == "deep metadata":
        line = checksummed(orjson.dumps(header).replace(b'"metadata":{', b'"metadata":{"deep":%b,' % DEEP))
    path.write_bytes(line + encode_line(first) + encode_line(end | in_end))
    with closing(reading(tmp_path)) as store:
        assert ids(store) == ["a"]
        assert "b" in store.status()["damaged"]
        assert store.status()["index_problem"] is None
        assert store.create({"environment_id": "lab"}, "key")
        with pytest.raises(CorruptDataError, match=r"b\.jsonl"):
            store.get("b")


@pytest.mark.parametrize("metadata", [None, [], {"step_index": "0"}, {"step_index": 1}])
def test_a_step_of_an_unexpected_shape_is_damage(tmp_path: Path, metadata: Any) -> None:
    record(tmp_path, "a")
    path = tmp_path / "episodes" / "a.jsonl"
    header, first, end = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + encode_line(decode_line(first) | {"step_metadata": metadata}) + end)
    with closing(reading(tmp_path)) as store, pytest.raises(CorruptDataError, match=r"a\.jsonl:2"):
        store.steps("a")


def test_who_asks_for_an_episode_waits_for_no_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, "ended")
    gate, describe = threading.Event(), catalogue.describe

    def slow(path: Path) -> Any:
        if path.stem == "slow":
            assert gate.wait(20)
        return describe(path)

    monkeypatch.setattr(catalogue, "describe", slow)
    with closing(reading(tmp_path)) as store, ThreadPoolExecutor(8) as pool:
        live = begin(store, 2)
        everything = sorted(["ended", live])
        assert ids(store) == everything
        record(tmp_path, "slow")
        look = pool.submit(store.list)
        try:
            time.sleep(0.3)
            assert not look.done()
            assert pool.submit(store.get, live).result(5)["state"] == "open"
            assert pool.submit(store.get, "ended").result(5)["state"] == "truncated"
            assert pool.submit(store.append_json, live, as_json(step(2)), JSON).result(5).step_index == 2
            with pytest.raises(ConflictError, match="has ended as truncated"):
                pool.submit(store.append_json, "ended", as_json(step(1)), JSON).result(5)
            assert pool.submit(store.end, live).result(5).steps == 3
            pool.submit(store.delete, live).result(5)
            assert not look.done()
        finally:
            gate.set()
        look.result(20)
        assert ids(store) == ["ended", "slow"]


@pytest.mark.parametrize("name", ["odd.jsonl", "odd.jsonl.zst"])
def test_a_pipe_keeps_nobody_waiting(tmp_path: Path, name: str) -> None:
    record(tmp_path, "ended")
    os.mkfifo(tmp_path / "episodes" / name)
    with open_store(tmp_path / "episodes") as store, ThreadPoolExecutor(1) as pool:
        assert pool.submit(ids, store).result(10) == ["ended"]
        with pytest.raises((NotFoundError, UnavailableError)):
            pool.submit(store.get, "odd").result(10)
        with pytest.raises((NotFoundError, UnavailableError)):
            pool.submit(store.append_json, "odd", as_json(step(0)), JSON).result(10)


def test_another_episode_under_the_name_of_a_deleted_one_is_another(tmp_path: Path) -> None:
    record(tmp_path, "twin", tags=["first"])
    with closing(reading(tmp_path)) as store:
        store.mark_uploaded(["twin"])
        assert store.get("twin")["uploaded"]
        for tag, end in (("second", False), ("third", True)):
            store.delete("twin")
            begin(store, 1, episode_id="twin", tags=[tag])
            if end:
                store.end("twin")
            assert not store.get("twin")["uploaded"]
            assert ids(store, tags=(tag,)) == ids(store) == ["twin"]
            assert not store.list()[0][0]["uploaded"]
            if not end:
                store.end("twin")
                assert ids(store, state="open") == []


def test_an_upload_is_not_taken_for_that_of_a_later_episode(tmp_path: Path) -> None:
    record(tmp_path, "twin", "other")
    with closing(reading(tmp_path)) as store:
        store.mark_uploaded(["twin", "other"])
    # While the daemon is down, or its catalogue in memory, nobody tells the file of the catalogue.
    with closing(EpisodeStore(tmp_path / "episodes", CaptureSettings(min_free_bytes=0))) as store:
        store.delete("twin")
    record(tmp_path, "twin")
    with closing(reading(tmp_path)) as store:
        assert {item["episode_id"]: item["uploaded"] for item in store.list()[0]} == {"twin": False, "other": True}
        assert not store.get("twin")["uploaded"]


def test_a_log_that_waits_for_its_recovery_is_neither_deleted_nor_touched(tmp_path: Path) -> None:
    record(tmp_path, "torn")
    path = tmp_path / "episodes" / "torn.jsonl"
    torn = path.read_bytes()[:-30]
    path.write_bytes(torn)
    with closing(reading(tmp_path)) as store, pytest.raises(ConflictError, match="is open"):
        store.delete("torn")
    assert path.read_bytes() == torn


def test_an_ended_episode_that_cannot_be_read_any_more_can_be_deleted(tmp_path: Path) -> None:
    record(tmp_path, "a", "b")
    with closing(reading(tmp_path)) as store:
        assert ids(store) == ["a", "b"]
        path = tmp_path / "episodes" / "a.jsonl"
        path.unlink()
        unreadable(path)
        unreadable(tmp_path / "episodes" / "never-read.jsonl")
        store.delete("a")
        assert ids(store) == ["b"]
        with pytest.raises(UnavailableError):
            store.delete("never-read")


def test_a_copy_is_found_under_its_own_name(tmp_path: Path) -> None:
    record(tmp_path, "a")
    shutil.copy(tmp_path / "episodes" / "a.jsonl", tmp_path / "episodes" / "copy.jsonl")
    with closing(reading(tmp_path)) as store:
        assert ids(store) == ["a", "copy"]
        assert store.get("copy")["episode_id"] == "copy"
        store.delete("copy")
        assert ids(store) == ["a"]


def test_a_page_ends_where_its_steps_grow_too_long_and_never_before_the_first(tmp_path: Path) -> None:
    settings = CaptureSettings(min_free_bytes=0, max_page_bytes=3000)
    with closing(EpisodeStore(tmp_path / "episodes", settings)) as store:
        (tmp_path / "episodes").mkdir()
        name = begin(store, 20)
        store.append_json(name, as_json(step(20, policy={"model": "m" * 5000})), JSON)
        for _ in ("open", "ended"):
            records = store.steps(name, 0, 100)
            assert len(records) == 21
            found: list[bytes] = []
            pages = []
            while page := store.page(name, len(found), 100):
                assert len(page) == 1 or sum(map(len, page)) <= 3000
                pages.append(len(page))
                found += page
            assert [orjson.loads(text) for text in found] == records
            assert pages[-1] == 1
            assert len(pages) < 8
            assert all(b"crc32c" not in text for text in found)
            store.end(name)
