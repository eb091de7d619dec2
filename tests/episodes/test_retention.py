"""Retention: the oldest first, only what is safe elsewhere, never an open one, and whole after a crash."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.episodes.archive import compress_log
from brain_service.episodes.index import EpisodeRow
from brain_service.episodes.retention import HeldEpisodes, is_wanted, plan_retention
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import UnavailableError
from brain_service.settings import CaptureSettings, RetentionSettings
from tests.episodes.bodies import begin

DAY_NS = 86_400 * 10**9
NOW_NS = 1_795_348_800 * 10**9


def row(
    number: int, size_bytes: int = 100, age_days: float = 0, *, held: bool = True, uploaded: bool = True
) -> EpisodeRow:
    ended_ns = NOW_NS - round(age_days * DAY_NS)
    summary = {"state": "terminated", "created_ns": ended_ns - 10**9, "ended_ns": ended_ns, "metadata": {}}
    return EpisodeRow(
        f"e{number}", f"e{number}.jsonl", size_bytes, 0, size_bytes, summary, sha256="held" if held else "other",
        uploaded_ns=1 if uploaded else None,
    )  # fmt: skip


def doomed(rows: list[EpisodeRow], free_bytes: int = 10**12, **settings: Any) -> list[str]:
    settings = {"keep_free_bytes": None, **settings}
    total = sum(r.size_bytes for r in rows)
    plan = plan_retention(rows, total, free_bytes, RetentionSettings(**settings), frozenset({"held"}), NOW_NS)
    return [item.episode_id for item in plan.doomed]


def test_each_bound_deletes_the_oldest_until_it_is_met() -> None:
    rows = [row(n, age_days=10 - n) for n in range(10)]
    assert doomed(rows) == []
    assert doomed(rows, max_age_days=7.5) == ["e0", "e1", "e2"]
    assert doomed(rows, max_total_bytes=700) == ["e0", "e1", "e2"]
    assert doomed(rows, free_bytes=50, keep_free_bytes=300) == ["e0", "e1", "e2"]
    assert doomed(rows, max_age_days=8.5, max_total_bytes=600) == ["e0", "e1", "e2", "e3"]


@pytest.mark.parametrize(
    ("ended_days", "changed_days", "goes"),
    [
        (20_000, 20_000, False),  # 1970 by both: nobody knows how old it is
        (20_000, 1, False),  # recorded before the clock was set, compressed yesterday
        (20_000, 9, True),
        (9, 1, False),  # copied here yesterday, say
        (9, 20_000, True),
        (9, 9, True),
        (-300, 9, True),  # the clock was ahead
        (9, -300, True),
        (-300, -300, False),
    ],
)
def test_an_age_is_believed_only_of_a_clock_that_was_set(
    ended_days: float, changed_days: float, goes: bool
) -> None:
    one = replace(row(0, age_days=ended_days), mtime_ns=NOW_NS - round(changed_days * DAY_NS))
    assert doomed([one], max_age_days=7) == ["e0"] * goes


def test_what_is_nowhere_else_stays_and_younger_ones_go() -> None:
    rows = [row(0, held=False), row(1, uploaded=False), row(2), row(3)]
    assert doomed(rows, max_total_bytes=250) == ["e2", "e3"]
    assert doomed(rows, max_total_bytes=250, delete_unconverted=True) == ["e0", "e2"]
    assert doomed(rows, max_total_bytes=250, delete_not_uploaded=True) == ["e1", "e2"]
    assert doomed(rows, max_total_bytes=250, delete_unconverted=True, delete_not_uploaded=True) == ["e0", "e1"]
    plan = plan_retention(rows[:2], 200, 0, RetentionSettings(max_total_bytes=1), frozenset({"held"}), NOW_NS)
    assert plan.doomed == ()
    assert (plan.kept_unconverted, plan.kept_not_uploaded, plan.kept_bytes) == (1, 1, 200)
    assert "delete_unconverted" in str(plan.blocked)


sizes = st.integers(1, 1000)


@given(
    rows=st.lists(st.tuples(sizes, st.floats(0, 100), st.booleans(), st.booleans()), max_size=20),
    free_bytes=st.integers(0, 5000),
    max_age_days=st.none() | st.floats(0.1, 100),
    max_total_bytes=st.none() | st.integers(1, 10_000),
    keep_free_bytes=st.none() | st.integers(1, 10_000),
    allowed=st.tuples(st.booleans(), st.booleans()),
)
def test_laws_of_a_plan(
    rows: list[tuple[int, float, bool, bool]],
    free_bytes: int,
    max_age_days: float | None,
    max_total_bytes: int | None,
    keep_free_bytes: int | None,
    allowed: tuple[bool, bool],
) -> None:
    made = [row(n, size, age, held=held, uploaded=up) for n, (size, age, held, up) in enumerate(rows)]
    made.sort(key=lambda r: r.created_ns)
    settings = RetentionSettings(
        max_age_days=max_age_days,
        max_total_bytes=max_total_bytes,
        keep_free_bytes=keep_free_bytes,
        delete_unconverted=allowed[0],
        delete_not_uploaded=allowed[1],
    )
    total = sum(r.size_bytes for r in made)
    plan = plan_retention(made, total, free_bytes, settings, frozenset({"held"}), NOW_NS)
    gone = {item.episode_id for item in plan.doomed}
    for one in made:
        if one.episode_id in gone:
            assert one.sha256 == "held" or allowed[0]
            assert one.uploaded_ns is not None or allowed[1]
    freed = sum(item.size_bytes for item in plan.doomed)
    if plan.blocked is None:
        assert max_total_bytes is None or total - freed <= max_total_bytes
        assert keep_free_bytes is None or free_bytes + freed >= keep_free_bytes or len(gone) == len(made)
    # Never more than asked for: without the last one, some bound was not met.
    if plan.doomed and max_age_days is None:
        without = freed - plan.doomed[-1].size_bytes
        assert (max_total_bytes is not None and total - without > max_total_bytes) or (
            keep_free_bytes is not None and free_bytes + without < keep_free_bytes
        )
    oldest_ns = min((one.ended_ns for one in made), default=None)
    if plan.doomed or plan.blocked:
        assert is_wanted(total, oldest_ns, free_bytes, settings, NOW_NS)


@contextmanager
def retaining(root: Path, **settings: Any) -> Iterator[EpisodeStore]:
    """A store whose own housekeeping has nothing to do, so that the test says when."""
    store = EpisodeStore(
        root / "episodes",
        CaptureSettings(min_free_bytes=0, compress_after_s=None),
        database=root / "brain.db",
        retention=RetentionSettings(**{"keep_free_bytes": None, **settings}),
        datasets_dir=root / "datasets",
    )
    (root / "episodes").mkdir(exist_ok=True)
    try:
        yield store
    finally:
        store.close()


def record(store: EpisodeStore, count: int) -> list[str]:
    names = [begin(store, 3) for _ in range(count)]
    for name in names:
        store.end(name)
    return names


def test_only_episodes_that_a_dataset_holds_and_that_were_uploaded_go(tmp_path: Path) -> None:
    with retaining(tmp_path, max_total_bytes=1) as store:
        names = record(store, 3)
        running = begin(store, 1)
        plan = store.apply_retention()
        assert (plan.doomed, plan.kept_unconverted) == ((), 3)
        convert_directory_to_tfrecord(tmp_path / "episodes", tmp_path / "datasets")
        late = record(store, 1)[0]
        plan = store.apply_retention()
        assert (plan.doomed, plan.kept_unconverted, plan.kept_not_uploaded) == ((), 1, 3)
        assert [store.get(name)["converted"] for name in (*names, late)] == [True, True, True, False]
        # Compression changes the file and not the episode.
        assert compress_log(tmp_path / "episodes" / f"{names[1]}.jsonl") is not None
        store.mark_uploaded([names[0], names[1], late, running])
        assert [item.episode_id for item in store.retention_plan().doomed] == names[:2]
        assert [item.episode_id for item in store.apply_retention().doomed] == names[:2]
        assert {item["episode_id"] for item in store.list()[0]} == {names[2], late, running}
        status = store.status()["retention"]
        assert status["deleted_episodes"] == 2
        assert status["deleted_bytes"] > 0
        assert "stay" in status["blocked"]


def test_a_dataset_that_is_gone_or_unreadable_holds_nothing(tmp_path: Path) -> None:
    with retaining(tmp_path, max_total_bytes=1, delete_not_uploaded=True) as store:
        names = record(store, 2)
        done = convert_directory_to_tfrecord(tmp_path / "episodes", tmp_path / "datasets")
        assert len(store.retention_plan().doomed) == 2
        manifest = done.dataset_dir / "manifest.json"
        text = manifest.read_text()
        manifest.write_text(text[:-100])
        assert store.retention_plan().doomed == ()
        manifest.write_bytes(text[:40].encode() + b"\xe4" + text[40:].encode())
        assert store.retention_plan().doomed == ()
        manifest.write_text(text)
        os.utime(manifest, (1, 1))
        assert len(store.retention_plan().doomed) == 2
        document = json.loads(text)
        for entries in document["splits"].values():
            entries[:] = [entry for entry in entries if not entry["source"].startswith(names[0])]
        manifest.write_text(json.dumps(document))
        # Listed as a source and yet left out of the dataset: it stays.
        assert [item.episode_id for item in store.retention_plan().doomed] == names[1:]


def test_another_episode_under_a_name_that_was_converted_stays(tmp_path: Path) -> None:
    with retaining(tmp_path, max_total_bytes=1, delete_not_uploaded=True) as store:
        store.end(begin(store, 3, episode_id="twin"))
        convert_directory_to_tfrecord(tmp_path / "episodes", tmp_path / "datasets")
        assert len(store.retention_plan().doomed) == 1
        store.delete("twin")
        store.end(begin(store, 4, episode_id="twin"))
        assert store.retention_plan().doomed == ()


def test_housekeeping_deletes_by_itself(tmp_path: Path) -> None:
    settings = {"max_total_bytes": 1, "delete_unconverted": True, "delete_not_uploaded": True}
    with retaining(tmp_path) as store:
        names = record(store, 2)
        running = begin(store, 1)
    with retaining(tmp_path, **settings) as store:
        store.start()
        for _ in range(200):
            if store.status()["retention"]["deleted_episodes"] == 2:
                break
            time.sleep(0.05)
        assert [item["episode_id"] for item in store.list()[0]] == [running]
        assert not [path for path in (tmp_path / "episodes").iterdir() if path.name.startswith(tuple(names))]


@pytest.mark.parametrize("call", ["unlink", "fsync"])
def test_a_deletion_that_fails_can_be_repeated(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with retaining(tmp_path, max_total_bytes=1, delete_unconverted=True, delete_not_uploaded=True) as store:
        record(store, 1)

        def fail(*_: Any, **__: Any) -> None:
            raise OSError(5, "the medium fails")

        with monkeypatch.context() as patched:
            patched.setattr(os, call, fail)
            with pytest.raises(UnavailableError):
                store.apply_retention()
        store.apply_retention()
        assert store.list()[0] == []
        assert list((tmp_path / "episodes").iterdir()) == []


def test_images_of_a_deleted_episode_go_even_after_a_crash(tmp_path: Path) -> None:
    images = tmp_path / "episodes" / "gone.images"
    kept = tmp_path / "episodes" / "there.images"
    with retaining(tmp_path) as store:
        store.end(begin(store, 1, episode_id="there"))
        for folder in (images, kept):
            folder.mkdir()
            (folder / f"{'0' * 64}.png").write_bytes(b"x")
            os.utime(folder, (1, 1))
        assert store.get("there")["size_bytes"] > (tmp_path / "episodes" / "there.jsonl").stat().st_size
        store.start()
        for _ in range(100):
            if not images.exists():
                break
            time.sleep(0.05)
        assert (images.exists(), kept.exists()) == (False, True)
        store.delete("there")
        assert not kept.exists()


def test_one_deletion_that_fails_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with retaining(tmp_path, max_total_bytes=1, delete_unconverted=True, delete_not_uploaded=True) as store:
        first, *_ = record(store, 3)
        really = os.unlink

        def fail(path: Path, **more: Any) -> None:
            if Path(path).name.startswith(first):
                raise OSError(5, "the medium fails")
            really(path, **more)

        monkeypatch.setattr(os, "unlink", fail)
        with pytest.raises(UnavailableError):
            store.apply_retention()
        assert [item["episode_id"] for item in store.list()[0]] == [first]
        assert store.status()["retention"]["deleted_episodes"] == 2


def test_no_datasets_folder_holds_nothing(tmp_path: Path) -> None:
    held = HeldEpisodes(None)
    assert not held.refresh()
    assert not HeldEpisodes(tmp_path / "none").refresh()
    assert held.digests == frozenset()
