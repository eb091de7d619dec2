"""What another process tells the catalogue of uploads."""

import contextlib
from pathlib import Path

from brain_service.database import Database
from brain_service.episodes.index import EpisodeIndex
from brain_service.episodes.logger import EpisodeLogger
from brain_service.episodes.reader import episode_digest
from brain_service.episodes.store import EpisodeStore
from brain_service.episodes.uploads import note_uploaded
from brain_service.settings import CaptureSettings


def _record(folder: Path, name: str, value: float) -> Path:
    with EpisodeLogger(folder) as logger:
        logger.start_episode("lab", episode_id=name)
        logger.log_step({"x": value}, {"y": 0.5}, 0.0, True)
        return logger.end_episode()


def test_a_log_that_was_uploaded_counts_whoever_knew_of_it_first(tmp_path: Path) -> None:
    first = episode_digest(_record(tmp_path / "episodes", "a", 1.0))
    second = episode_digest(_record(tmp_path / "episodes", "b", 2.0))
    database = tmp_path / "brain.db"
    store = EpisodeStore(tmp_path / "episodes", CaptureSettings(), database=database)

    def uploaded() -> list[bool]:
        return [bool(store.get(name)["uploaded"]) for name in ("a", "b")]

    with contextlib.closing(store):
        # Before the catalogue has seen the log, and of one that is not here at all.
        note_uploaded(database, [first, "0" * 64])
        note_uploaded(database, [])
        store.list(10, None)
        assert uploaded() == [False, False], "nobody knows the digests yet"
        with contextlib.closing(EpisodeIndex(database)) as index:
            index.set_digests({"a": first, "b": second})
        assert uploaded() == [True, False]
        note_uploaded(database, [second])
        note_uploaded(database, [second])
        assert uploaded() == [True, True]


def test_another_episode_of_the_same_id_was_not_uploaded(tmp_path: Path) -> None:
    path = _record(tmp_path / "episodes", "a", 1.0)
    database = tmp_path / "brain.db"
    note_uploaded(database, [episode_digest(path)])
    with contextlib.closing(EpisodeStore(tmp_path / "episodes", CaptureSettings(), database=database)) as store:
        store.list(10, None)
        with contextlib.closing(EpisodeIndex(database)) as index:
            index.set_digests({"a": episode_digest(path)})
        assert store.get("a")["uploaded"]
        store.delete("a")
        other = _record(tmp_path / "episodes", "a", 2.0)
        store.list(10, None)
        with contextlib.closing(EpisodeIndex(database)) as index:
            index.set_digests({"a": episode_digest(other)})
        assert not store.get("a")["uploaded"]


def test_an_index_that_takes_anothers_place_knows_its_uploads(tmp_path: Path) -> None:
    note_uploaded(tmp_path / "brain.db", ["1" * 64])
    with (
        contextlib.closing(EpisodeIndex(tmp_path / "brain.db")) as old,
        contextlib.closing(EpisodeIndex(None)) as new,
    ):
        new.add_uploads(old.uploads(), old.uploaded_logs())
        assert new.uploaded_logs() == old.uploaded_logs()
        assert [digest for digest, _ in new.uploaded_logs()] == ["1" * 64]


def test_a_file_of_before_these_marks_takes_them(tmp_path: Path) -> None:
    path = tmp_path / "brain.db"
    EpisodeIndex(path).close()
    with contextlib.closing(Database(path, "DROP TABLE uploaded_logs", 1, name="episodes")):
        pass
    note_uploaded(path, ["1" * 64])
    with contextlib.closing(EpisodeIndex(path)) as index:
        assert len(index.uploaded_logs()) == 1
