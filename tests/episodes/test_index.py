"""The catalogue: pages, filters, files that come and go, a lost or damaged database, steps without a scan."""

import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.episodes import archive, plain_log
from brain_service.episodes.archive import compress_log
from brain_service.episodes.index import Filters, decode_cursor, encode_cursor
from brain_service.episodes.log_format import decode_line, encode_line
from brain_service.episodes.logger import EpisodeLogger
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import ConflictError, CorruptDataError, InvalidError, NotFoundError, UnavailableError
from brain_service.settings import CaptureSettings
from tests.episodes.bodies import JSON, as_json, begin, open_store, step


def catalogued(root: Path, **settings: Any) -> EpisodeStore:
    """Return a started store over `root/episodes` with its catalogue in `root/brain.db`."""
    found = EpisodeStore(
        root / "episodes", CaptureSettings(min_free_bytes=0, **settings), database=root / "brain.db"
    )
    found.start()
    assert found.wait_recovered(10)
    return found


def ids(store: EpisodeStore, **filters: Any) -> list[str]:
    return [item["episode_id"] for item in store.list(1000, None, Filters(**filters))[0]]


def all_pages(store: EpisodeStore, limit: int, between: Any = lambda: None) -> list[list[str]]:
    pages: list[list[str]] = []
    cursor = None
    while True:
        items, cursor = store.list(limit, cursor)
        pages.append([item["episode_id"] for item in items])
        if cursor is None:
            return pages
        between()


def test_pages_stand_still_while_episodes_come_and_go(store: EpisodeStore) -> None:
    made = [begin(store) for _ in range(7)]
    for name in made:
        store.end(name)
    doomed = [made[6], made[0]]

    def disturb() -> None:
        store.end(begin(store))
        if doomed:
            store.delete(doomed.pop(0))

    seen = [name for page in all_pages(store, 2, disturb) for name in page]
    assert seen == made[:0:-1]


@pytest.mark.parametrize("cursor", ["", "x", "nonsense!", "é", "MTIz", encode_cursor(2**70, "a"), "MTphYg=="])
def test_a_cursor_that_no_list_gave_is_the_callers_error(store: EpisodeStore, cursor: str) -> None:
    with pytest.raises(InvalidError) as raised:
        store.list(10, cursor)
    assert raised.value.field == "cursor"


@given(st.integers(-(2**63) + 1, 2**63 - 1), st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True))
def test_a_cursor_comes_back_as_it_went(created_ns: int, episode_id: str) -> None:
    assert decode_cursor(encode_cursor(created_ns, episode_id)) == (created_ns, episode_id)


def test_every_filter_must_hold(store: EpisodeStore) -> None:
    a = begin(store, 1, environment_id="lab", robot_id="r1", xr_mode="trainer", tags=["x", "y"])
    b = begin(store, 1, environment_id="lab", robot_id="r2", control_role="policy", tags=["y"])
    c = begin(store, 1, environment_id="field", robot_id="r2", xr_mode="observer", tags=["x"])
    store.end(b, "truncated")
    created = {name: store.get(name)["created_ns"] for name in (a, b, c)}
    assert ids(store) == [c, b, a]
    assert ids(store, tags=("x",)) == [c, a]
    assert ids(store, tags=("x", "y")) == [a]
    assert ids(store, environment_id="lab", robot_id="r2") == [b]
    assert ids(store, control_role="policy") == [b]
    assert ids(store, xr_mode="observer") == [c]
    assert ids(store, state="open") == [c, a]
    assert ids(store, state="truncated") == [b]
    assert ids(store, created_after=created[a]) == [c, b]
    assert ids(store, created_before=created[c]) == [b, a]
    assert ids(store, created_after=2**80) == ids(store, tags=("'; DROP TABLE episodes; --",)) == []


def test_a_list_shows_what_was_just_written(store: EpisodeStore) -> None:
    for _ in range(20):
        name = begin(store, 2)
        listed = {item["episode_id"]: item for item in store.list()[0]}
        assert (listed[name]["state"], listed[name]["steps"]) == ("open", 2)
        store.append_json(name, as_json(step(2)), JSON)
        assert store.list()[0][0]["steps"] == 3
        store.end(name, "truncated")
        assert store.list()[0][0] == store.get(name)
        assert store.get(name)["state"] == "truncated"
    store.delete(name)
    assert name not in ids(store)


def test_files_that_others_write_copy_and_remove_are_followed(store: EpisodeStore, tmp_path: Path) -> None:
    logger = EpisodeLogger(tmp_path)
    theirs = logger.start_episode(tags=["theirs"])
    logger.log_step({"x": 1}, {"a": 1})
    assert [(item["state"], item["steps"]) for item in store.list()[0]] == [("open", 1)]
    logger.log_step({"x": 2}, {"a": 1})
    assert store.list()[0][0]["steps"] == 2
    logger.close()
    assert store.list()[0][0]["state"] == "truncated"
    assert ids(store, tags=("theirs",)) == [theirs]
    copied = tmp_path / f"{theirs}.jsonl"
    aside = tmp_path.parent / f"{tmp_path.name}-aside.jsonl"
    shutil.move(copied, aside)
    assert ids(store) == []
    shutil.move(aside, copied)
    assert ids(store) == [theirs]


def test_a_file_that_is_no_log_is_looked_at_once(store: EpisodeStore, tmp_path: Path) -> None:
    (tmp_path / "seed.jsonl").write_text('{"observation": {"x": 1}, "action": {"x": 1}}\n')
    name = begin(store)
    assert ids(store) == [name]
    assert ids(store) == [name]


def test_the_catalogue_outlives_a_restart_and_is_rebuilt_when_it_is_gone(tmp_path: Path) -> None:
    with closing(catalogued(tmp_path)) as store:
        names = [begin(store, 1, tags=[f"t{n}"]) for n in range(4)]
        for name in names:
            store.end(name)
        before = store.list()[0]
        store.mark_uploaded([names[0]])
    with closing(catalogued(tmp_path)) as store:
        assert [item["uploaded"] for item in store.list()[0]] == [False, False, False, True]
    for file in tmp_path.glob("brain.db*"):
        file.unlink()
    with closing(catalogued(tmp_path)) as store:
        assert store.list()[0] == before
        assert ids(store, tags=("t2",)) == [names[2]]


@pytest.mark.parametrize("damage", ["noise", "pages"])
def test_a_damaged_database_is_moved_aside_and_the_robot_does_not_notice(tmp_path: Path, damage: str) -> None:
    with closing(catalogued(tmp_path)) as store:
        for _ in range(30):
            store.end(begin(store, 1))
        names = ids(store)
    database = tmp_path / "brain.db"
    data = bytearray(database.read_bytes())
    data[0 if damage == "noise" else 5000 :] = os.urandom(len(data) - (0 if damage == "noise" else 5000))
    database.write_bytes(data)
    with closing(catalogued(tmp_path)) as store:
        assert ids(store) == names
        assert len(list(tmp_path.glob("brain.db.damaged-*"))) >= 1
        assert store.status()["index_problem"] is None


def test_without_a_usable_database_lists_come_from_the_files(tmp_path: Path) -> None:
    (tmp_path / "brain.db").mkdir()
    with closing(catalogued(tmp_path)) as store:
        name = begin(store, 1)
        assert ids(store) == [name]
        assert "brain.db" in store.status()["index_problem"]
        store.end(name)
        assert ids(store, state="truncated") == [name]


def test_a_database_that_fails_while_running_is_replaced_by_the_files(tmp_path: Path) -> None:
    with closing(catalogued(tmp_path)) as store:
        names = [begin(store, 1), begin(store, 1)]
        store.end(names[0])
        store.mark_uploaded(names[:1])
        other = sqlite3.connect(tmp_path / "brain.db")
        other.execute("DROP TABLE episodes")
        other.close()
        assert ids(store) == names[::-1]
        assert "no such table" in store.status()["index_problem"]
        assert store.get(names[0])["uploaded"]
        store._library.ask(lambda index: index.add_wear({"2026-11-22": 7}))
        store._library.mend()
        assert store.status()["index_problem"] is None
        assert ids(store) == names[::-1]
        assert store.get(names[0])["uploaded"]
        assert store._library.ask(lambda index: index.wear())["2026-11-22"] == 7


def test_a_locked_database_delays_no_writer_and_lists_come_from_the_files(tmp_path: Path) -> None:
    with closing(catalogued(tmp_path)) as store:
        store.list()
        other = sqlite3.connect(tmp_path / "brain.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        begun_s = time.monotonic()
        name = begin(store, 3)
        store.end(name)
        assert time.monotonic() - begun_s < 1
        assert ids(store) == [name]
        assert "locked" in store.status()["index_problem"]
        with pytest.raises(UnavailableError, match="cannot note uploads"):
            store.mark_uploaded([name])
        other.execute("ROLLBACK")
        other.close()
        store._library.mend()
        assert store.status()["index_problem"] is None
        store.mark_uploaded([name])
        assert store.list()[0][0]["uploaded"]


def test_a_key_is_found_again_after_a_restart(tmp_path: Path) -> None:
    with closing(catalogued(tmp_path)) as store:
        first = store.create({"tags": ["x"]}, "key-1").episode_id
        store.append_json(first, as_json(step(0)), JSON)
        store.end(first)
        assert store.create({"tags": ["x"]}, "key-1").episode_id == first
    with closing(catalogued(tmp_path)) as store:
        assert store.create({"tags": ["x"]}, "key-1").episode_id == first
        with pytest.raises(ConflictError):
            store.create({"tags": ["y"]}, "key-1")
        assert store.create({"tags": ["x"]}, "key-2").episode_id != first
        store.delete(first)
        assert store.create({"tags": ["x"]}, "key-1").episode_id != first


def test_compressed_episodes_are_read_like_others(store: EpisodeStore, tmp_path: Path) -> None:
    name = begin(store, 20)
    store.end(name, "truncated")
    before, steps = store.get(name), store.steps(name, 0, 100)
    archive_path = compress_log(tmp_path / f"{name}.jsonl")
    assert archive_path is not None
    after = store.get(name)
    assert (before.pop("compressed"), after.pop("compressed")) == (False, True)
    assert (before.pop("size_bytes"), after.pop("size_bytes")) > (0, archive_path.stat().st_size)
    assert before == after
    assert store.steps(name, 0, 100) == steps
    assert store.steps(name, 7, 3) == steps[7:10]
    assert store.steps(name, 20, 3) == []
    assert store.list()[0][0]["compressed"]
    with pytest.raises(ConflictError, match="ended as truncated"):
        store.append_json(name, as_json(step(20)), JSON)
    assert store.end(name).steps == 20
    with pytest.raises(ConflictError, match="exists"):
        store.create({"episode_id": name})
    store.delete(name)
    assert not list(tmp_path.iterdir())


def test_a_damaged_archive_is_told_and_can_be_deleted(store: EpisodeStore, tmp_path: Path) -> None:
    name = begin(store, 3)
    store.end(name)
    path = compress_log(tmp_path / f"{name}.jsonl")
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptDataError):
        store.get(name)
    assert ids(store) == []
    assert "cut short" in store.status()["damaged"][name]
    store.delete(name)
    with pytest.raises(NotFoundError):
        store.get(name)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("ended", [False, True])
def test_any_range_of_steps_comes_without_reading_what_precedes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool, ended: bool
) -> None:
    monkeypatch.setattr(plain_log, "_NEAR_BYTES", 700)
    monkeypatch.setattr(archive, "FRAME_TEXT_BYTES", 700)
    logger = EpisodeLogger(tmp_path)
    name = logger.start_episode()
    for index in range(150):
        logger.log_step({"x": [0.5] * 4}, {"a": 1}, timestamp_ns=index)
    if ended:
        logger.close()
    if compressed and ended:
        assert compress_log(tmp_path / f"{name}.jsonl") is not None
    with open_store(tmp_path) as store:
        for start in range(0, 155, 11):
            for limit in (0, 1, 4, 200):
                found = [r["step_metadata"]["step_index"] for r in store.steps(name, start, limit)]
                assert found == list(range(start, min(start + limit, 150)))
    logger.close()


def long_log(folder: Path, episode_id: str, steps: int) -> Path:
    """Write an ended log of many steps, faster than a logger checks them under the tests' type checker."""
    with EpisodeLogger(folder) as logger:
        logger.start_episode(episode_id=episode_id)
        logger.log_step({"x": [0.123] * 40}, {"a": 1}, timestamp_ns=0)
        path = logger.end_episode()
    header, first, end = path.read_bytes().splitlines(keepends=True)
    record = decode_line(first)
    lines = [header, first]
    del record["features"]
    for index in range(1, steps):
        record["step_metadata"]["step_index"] = index
        lines.append(encode_line(record))
    path.write_bytes(b"".join([*lines, encode_line(decode_line(end) | {"steps": steps})]))
    return path


def test_a_long_log_is_not_read_from_its_start(tmp_path: Path) -> None:
    path = long_log(tmp_path, "e", 8000)
    size_bytes = path.stat().st_size
    # Zeroes in place of the middle: whoever reads there finds no line at all.
    with path.open("r+b") as file:
        file.seek(size_bytes // 10)
        file.write(b"\0" * (size_bytes // 10))
    with open_store(tmp_path) as store:
        found = store.steps("e", 7990, 5)
    assert [record["step_metadata"]["step_index"] for record in found] == list(range(7990, 7995))


def test_a_damaged_line_is_named_and_never_taken_for_another(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    with EpisodeLogger(tmp_path) as logger:
        logger.start_episode(episode_id="e")
        for index in range(10):
            logger.log_step({"x": 1}, {"a": 1}, timestamp_ns=index)
    path.write_bytes(path.read_bytes().replace(b'"step_index":4', b'"step_index":5'))
    with open_store(tmp_path) as store:
        assert len(store.steps("e", 0, 4)) == 4
        with pytest.raises(CorruptDataError, match=r"e\.jsonl:6"):
            store.steps("e", 0, 10)


def test_housekeeping_compresses_what_lies_idle(tmp_path: Path) -> None:
    with open_store(tmp_path, compress_after_s=0) as store:
        done, running = begin(store, 3), begin(store, 1)
        store.end(done)
        give_up = time.monotonic() + 20
        while not store.get(done)["compressed"]:
            assert time.monotonic() < give_up
            time.sleep(0.05)
        assert not store.get(running)["compressed"]
        assert len(store.steps(done)) == 3
