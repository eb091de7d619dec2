"""All episodes of a directory as lists, pages, summaries and steps: the reading side of the store.

The index follows the files: a list first looks which names the directory has gained or lost, so that files of an
`EpisodeLogger` or copied in appear by themselves, and nothing that writes episodes ever waits for the index.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from brain_service.durable import fsync_directory
from brain_service.episodes import catalogue
from brain_service.episodes.archive import ARCHIVE_SUFFIX
from brain_service.episodes.header import EpisodeHeader
from brain_service.episodes.images import FOLDER_SUFFIX, remove_images
from brain_service.episodes.index import EpisodeIndex, EpisodeRow, Filters, decode_cursor, encode_cursor
from brain_service.episodes.log import io_problem
from brain_service.episodes.open_episodes import OpenEpisodes
from brain_service.errors import (
    BrainError,
    ConfigError,
    ConflictError,
    CorruptDataError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)

__all__ = ["Library"]

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
Records = list[dict[str, Any]]
# More than a century at 1 kHz; sums of two bounds stay far inside a machine word.
_MOST_STEPS = 2**48
# Directory times advance in steps of the kernel's tick: a change this soon after the last one may not show.
_TICK_NS = 50_000_000
_UNKNOWN = ("", 0, 0, False)


class Library:
    """Summaries, steps and deletion of the episodes under `root`. Thread-safe; every method may block.

    `damaged` tells of files that should be episodes and cannot be read; `index_problem` why the index is in
    memory instead of its file, or None.
    """

    def __init__(self, root: Path, opened: OpenEpisodes, database: Path | None) -> None:
        self.damaged: dict[str, str] = {}
        self.index_problem: str | None = None
        self._root = root
        self._opened = opened
        self._database = database
        self._lock = threading.RLock()
        self._index: EpisodeIndex | None = None
        # What the index says of files, by episode id: name, size, modification time, whether without an end.
        self._files: dict[str, tuple[str, int, int, bool]] = {}
        self._not_logs: dict[str, tuple[str, int, int]] = {}
        # The names of the last look; None: there was none yet.
        self._names: set[str] | None = None
        self._seen_ns: int | None = None
        self._stopping = False

    def get(self, episode_id: str) -> dict[str, Any]:
        """Return the summary of an episode.

        Raises:
            NotFoundError: no such episode.
            CorruptDataError: its file is damaged.
            UnavailableError: the medium cannot read it.
        """
        path = catalogue.episode_path(self._root, episode_id)
        live = self._live(episode_id)
        found = catalogue.closed_summary(path) if live is None else live
        row: EpisodeRow | None = None
        with contextlib.suppress(BrainError):
            row = self.ask(lambda index: index.get(episode_id))
        return self._shown(found, catalogue.stored(path), row)

    def list(self, limit: int, cursor: str | None, filters: Filters) -> tuple[Records, str | None]:
        """Return up to `limit` summaries, newest first, and the cursor of the next page (None: no more).

        A page follows on the one before it, whatever was created or deleted in between. A file that is no
        readable capture log is left out.

        Raises:
            InvalidError: the cursor is none of ours.
            UnavailableError: the directory cannot be read.
        """
        after = None if cursor is None else decode_cursor(cursor)
        self.refresh()
        rows, more = self.ask(lambda index: index.page(filters, limit, after))
        found = [
            self._shown(self._live(row.episode_id) or self._summary_of(row), self._root / row.file, row)
            for row in rows
        ]
        return found, encode_cursor(rows[-1].created_ns, rows[-1].episode_id) if more else None

    def steps(self, episode_id: str, start: int, limit: int) -> Records:
        """Return the records of steps `start` to `start + limit - 1`, as they stand in the log.

        Raises:
            InvalidError: a bound is negative or beyond any episode.
            NotFoundError: no such episode.
            CorruptDataError: a stored line fails its checksum.
            UnavailableError: the medium cannot read.
        """
        for name, given in (("start", start), ("limit", limit)):
            if not 0 <= given < _MOST_STEPS:
                raise InvalidError(f"{name} {given} is not between 0 and {_MOST_STEPS - 1}", field=name)
        path = catalogue.episode_path(self._root, episode_id)
        writer = self._opened.known(episode_id)
        if writer is not None:
            # It may have ended and been compressed since.
            with contextlib.suppress(NotFoundError):
                return catalogue.read_span(path, *writer.span(start, limit))
        return catalogue.read_closed(path, start, limit)

    def delete(self, episode_id: str) -> None:
        """Remove an ended episode, its images, and what recovery set aside of it.

        Raises:
            NotFoundError: no such episode.
            ConflictError: it is open.
            UnavailableError: the medium refuses.
        """
        path = catalogue.episode_path(self._root, episode_id)
        plain = catalogue.find_log(self._root, episode_id).suffix != ARCHIVE_SUFFIX
        if plain and (self._opened.find(episode_id) is not None or catalogue.read_end(path) is None):
            raise ConflictError(f"episode {episode_id!r} is open; POST /episodes/{episode_id}/end first")
        try:
            for part in self._root.glob(f"{path.name}.corrupt-*"):
                part.unlink()
            # The log goes last: it counts where a crash left both.
            path.with_name(path.name + ARCHIVE_SUFFIX).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            fsync_directory(self._root)
            remove_images(self._root, episode_id)
        except OSError as error:
            raise io_problem(error, f"delete episode {episode_id!r}") from error
        with self._lock, contextlib.suppress(BrainError):
            self.ask(lambda index: index.remove([episode_id]))
            self._files.pop(episode_id, None)
            self.damaged.pop(episode_id, None)

    def by_idempotency_key(self, key: str) -> EpisodeHeader | None:
        """Return the header of the episode, open or ended, that a request with this key created.

        Raises:
            UnavailableError: the directory cannot be read.
        """
        self.refresh()
        episode_id = self.ask(lambda index: index.by_idempotency_key(key))
        if episode_id is None:
            return None
        with contextlib.suppress(NotFoundError):
            return catalogue.read_header(catalogue.episode_path(self._root, episode_id))
        return None

    def mark_uploaded(self, episode_ids: Iterable[str]) -> None:
        """Note, durably, that episodes are stored elsewhere too.

        Raises:
            UnavailableError: the index cannot be written; they count as not uploaded.
            CorruptDataError: it is damaged.
        """
        names = list(episode_ids)
        with self._lock:
            if self._database is not None and self.index_problem is not None:
                raise UnavailableError(f"cannot note uploads: {self.index_problem}")
            self._opened_index().set_uploaded(names, time.time_ns())

    def refresh(self, *, full: bool = False) -> None:
        """Bring the index up to the files; `full` also finds closed files that changed in place.

        Raises:
            UnavailableError: the directory cannot be read.
        """
        with self._lock:
            names = self._look(full)
            self.ask(lambda index: self._follow(index, names, full))
            self._names = names

    def ask(self, call: Callable[[EpisodeIndex], T]) -> T:
        """Return what `call` makes of the index; where its file fails, of one in memory that the files give.

        Raises:
            UnavailableError: the directory cannot be read either.
        """
        with self._lock:
            index = self._opened_index()
            try:
                return call(index)
            except (UnavailableError, CorruptDataError) as error:
                if self.index_problem is not None or self._database is None:
                    raise
                return call(self._fall_back(error.detail, index))

    def mend(self) -> None:
        """Go back from an index in memory to its file, if that can be used again."""
        with self._lock:
            if self.index_problem is None:
                return
            try:
                index = self._open_file()
                self._files = index.files()
                self._follow(index, catalogue.list_names(self._root), True)
            except BrainError as error:
                self.index_problem = error.detail
                self._files = self._opened_index().files()
                return
            _LOG.info("the catalogue is in %s again", self._database)
            self._opened_index().close()
            self._index, self.index_problem = index, None

    def open(self) -> None:
        """Open the index's file, or go without it and say so in `index_problem`."""
        with self._lock, contextlib.suppress(UnavailableError):
            self._opened_index()

    def stop(self) -> None:
        """Have a long look at many files end soon, before `close`."""
        self._stopping = True

    def close(self) -> None:
        """Close the index."""
        with self._lock:
            if self._index is not None:
                self._index.close()
                self._index = None

    def _opened_index(self) -> EpisodeIndex:
        if self._index is None:
            try:
                self._index = self._open_file()
            except (ConfigError, UnavailableError) as error:
                return self._fall_back(error.detail, None)
            self._files = self._index.files()
        return self._index

    def _open_file(self) -> EpisodeIndex:
        """Open the index's file; a damaged one is moved aside, since the logs tell all but the uploads.

        Raises:
            ConfigError: it cannot be opened, or a newer version of this program wrote it.
            UnavailableError: the medium refuses.
        """
        try:
            return EpisodeIndex(self._database)
        except CorruptDataError as error:
            assert self._database is not None
            aside = self._database.with_name(f"{self._database.name}.damaged-{time.time_ns()}")
            _LOG.error("%s; moved to %s, the catalogue is rebuilt from the logs", error.detail, aside.name)
            try:
                for suffix in ("-wal", "-shm", ""):
                    file = self._database.with_name(self._database.name + suffix)
                    if file.exists():
                        file.rename(aside.with_name(aside.name + suffix))
            except OSError as problem:
                raise io_problem(problem, f"move {self._database} aside") from problem
            return EpisodeIndex(self._database)

    def _fall_back(self, reason: str, broken: EpisodeIndex | None) -> EpisodeIndex:
        _LOG.error("the catalogue's file fails, it is kept in memory until that is mended: %s", reason)
        uploads: dict[str, int] = {}
        if broken is not None:
            with contextlib.suppress(BrainError):
                uploads = broken.uploads()
            broken.close()
        self.index_problem = reason
        self._index, self._files, self._seen_ns = EpisodeIndex(None), {}, None
        for episode_id, uploaded_ns in uploads.items():
            self._index.set_uploaded([episode_id], uploaded_ns)
        self._follow(self._index, catalogue.list_names(self._root), True)
        return self._index

    def _look(self, full: bool) -> set[str]:
        """Return the names of the directory, those of the last look where it has not changed since."""
        try:
            changed_ns = self._root.stat().st_mtime_ns
        except OSError as error:
            raise io_problem(error, f"list {self._root}") from error
        if self._names is not None and changed_ns == self._seen_ns and not full:
            return self._names
        self._seen_ns = changed_ns if time.time_ns() - changed_ns > _TICK_NS else None
        return catalogue.list_names(self._root)

    def _follow(self, index: EpisodeIndex, names: set[str], full: bool) -> None:
        """Read what is new, changed, or ended since the last look; forget what is gone."""
        changed = names if full or self._names is None else names ^ self._names
        look = {found for name in changed if (found := catalogue.id_of_file(name)) is not None}
        if full or self._names is None:
            look |= self._files.keys()
        ours = {writer.header.episode_id for writer in self._opened.writers()}
        look -= ours & self._files.keys()
        # A log may have been seen, and found damaged, before its recovery cut it.
        look |= ours - self._files.keys()
        look |= {name for name, known in self._files.items() if known[3]} - ours
        rows: list[EpisodeRow] = []
        gone: list[str] = []
        for episode_id in look:
            if self._stopping:
                break  # the next start looks at every file
            file = next((name for name in _file_names(episode_id) if name in names), None)
            row = None if file is None else self._read_row(episode_id, self._root / file)
            if row is not None:
                rows.append(row)
            elif file is None or episode_id in self._not_logs:
                gone.append(episode_id)
            if file is None:
                self._not_logs.pop(episode_id, None)
                self.damaged.pop(episode_id, None)
        index.remove([name for name in gone if name in self._files])
        for episode_id in gone:
            self._files.pop(episode_id, None)
        # One that another process goes on writing changes all the time: not worth wearing the card for.
        new = [row for row in rows if not (row.is_open and self._files.get(row.episode_id, _UNKNOWN)[3])]
        if new:
            index.put(new)
            for row in new:
                self._not_logs.pop(row.episode_id, None)
                self.damaged.pop(row.episode_id, None)
                self._files[row.episode_id] = (row.file, row.file_bytes, row.mtime_ns, row.is_open)

    def _read_row(self, episode_id: str, path: Path) -> EpisodeRow | None:
        """Return the row of a file that is new or has changed, else None."""
        try:
            stat = path.stat()
        except OSError:
            return None  # deleted or renamed meanwhile: the next look sees it
        now = (path.name, stat.st_size, stat.st_mtime_ns)
        if now in (self._files.get(episode_id, ())[:3], self._not_logs.get(episode_id)):
            return None
        try:
            found = catalogue.describe(path)
        except (NotFoundError, CorruptDataError) as error:
            self._not_logs[episode_id] = now
            if isinstance(error, CorruptDataError):
                self.damaged[episode_id] = error.detail
                _LOG.error("episode %s is damaged: %s", episode_id, error.detail)
            return None
        return EpisodeRow(
            *(episode_id, *now, stat.st_size + _images_bytes(self._root, episode_id), found.summary),
            sha256=found.sha256,
            idempotency_key=found.header.idempotency_key,
        )

    def _live(self, episode_id: str) -> dict[str, Any] | None:
        """Return the summary of an episode that is written here."""
        writer = self._opened.known(episode_id)
        if writer is None or writer.ended is not None:
            return None
        found = catalogue.summary(writer.header, "open", writer.steps, writer.durable_through)
        if writer.spec is not None:
            found["features"] = writer.spec.to_json()
        return found

    def _summary_of(self, row: EpisodeRow) -> dict[str, Any]:
        """Return a row's summary, read anew where another process may have gone on writing."""
        if row.is_open:
            with contextlib.suppress(BrainError):
                return catalogue.closed_summary(self._root / row.file)
        return dict(row.summary)

    def _shown(self, summary: dict[str, Any], path: Path, row: EpisodeRow | None) -> dict[str, Any]:
        size_bytes = 0
        if row is not None and not row.is_open and row.file == path.name:
            size_bytes = row.size_bytes
        else:
            with contextlib.suppress(OSError):
                size_bytes = path.stat().st_size + _images_bytes(self._root, str(summary["episode_id"]))
        return summary | {
            "size_bytes": size_bytes,
            "compressed": path.suffix == ARCHIVE_SUFFIX,
            "converted": row is not None and row.converted,
            "uploaded": row is not None and row.uploaded_ns is not None,
        }


def _file_names(episode_id: str) -> tuple[str, str]:
    """Return the names that a log may have; the first one counts where both are there."""
    plain = f"{episode_id}{catalogue.LOG_SUFFIX}"
    return plain, plain + ARCHIVE_SUFFIX


def _images_bytes(root: Path, episode_id: str) -> int:
    try:
        return sum(path.stat().st_size for path in (root / f"{episode_id}{FOLDER_SUFFIX}").iterdir())
    except OSError:
        return 0
