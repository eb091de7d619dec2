"""All episodes of a directory as lists, pages, summaries and steps: the reading side of the store.

The index follows the files: a list first looks which names the directory has gained or lost, so that files of an
`EpisodeLogger` or copied in appear by themselves, and nothing that writes episodes ever waits for the index.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

from brain_service.durable import fsync_directory
from brain_service.episodes import catalogue
from brain_service.episodes.archive import ARCHIVE_SUFFIX
from brain_service.episodes.follower import Follower
from brain_service.episodes.header import EpisodeHeader
from brain_service.episodes.images import remove_images
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
Texts = list[bytes]
# More than a century at 1 kHz; sums of two bounds stay far inside a machine word.
_MOST_STEPS = 2**48


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
        # One look at a time; it may take seconds, and who only asks the index does not wait for it.
        self._looking = threading.RLock()
        # Held for moments, to exchange the members below.
        self._lock = threading.RLock()
        self._follower: Follower | None = None
        self._deleted: set[str] = set()
        self._stopping = False

    def get(self, episode_id: str) -> dict[str, Any]:
        """Return the summary of an episode; of one that is written here without a look at the index.

        Raises:
            NotFoundError: no such episode.
            CorruptDataError: its file is damaged.
            UnavailableError: the medium cannot read it.
        """
        path = catalogue.episode_path(self._root, episode_id)
        live = self._live(episode_id)
        if live is not None:
            return self._shown(live, path, None)
        found = catalogue.describe(path).summary
        return self._shown(found, catalogue.stored(path), self._row(episode_id))

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

    def steps(self, episode_id: str, start: int, limit: int, max_bytes: int | None = None) -> Texts:
        """Return the records of steps `start` to `start + limit - 1` as JSON texts, as they stand in the log.

        It ends before `limit` where the next one would make them longer than `max_bytes`, and never before the
        first: whoever wants the rest goes on behind the last, until there is none.

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
                return catalogue.read_span(path, *writer.span(start, limit), start, max_bytes)
        return catalogue.read_closed(path, start, limit, max_bytes)

    def delete(self, episode_id: str) -> None:
        """Remove an ended episode, its images, and what recovery set aside of it.

        Raises:
            NotFoundError: no such episode.
            ConflictError: it is open.
            UnavailableError: the medium refuses, or cannot tell whether it is open.
        """
        path = catalogue.episode_path(self._root, episode_id)
        if catalogue.find_log(self._root, episode_id) == path and not self._has_ended(episode_id, path):
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
        with self._lock:
            # Before the next look there may be another under this name.
            self._deleted.add(episode_id)

    def by_idempotency_key(self, key: str) -> EpisodeHeader | None:
        """Return the header of the episode, open or ended, that a request with this key created.

        Raises:
            UnavailableError: the directory, or that episode, cannot be read.
        """
        self.refresh()
        episode_id = self.ask(lambda index: index.by_idempotency_key(key))
        if episode_id is None:
            return None
        with contextlib.suppress(NotFoundError):
            return catalogue.read_header(catalogue.episode_path(self._root, episode_id))
        return None

    def ended_since(self, time_ns: int) -> int:
        """Return how many episodes ended after a time, in ns.

        Raises:
            UnavailableError: the directory cannot be read.
        """
        self.refresh()
        return self.ask(lambda index: index.ended_since(time_ns))

    def mark_uploaded(self, episode_ids: Iterable[str]) -> None:
        """Note, durably, that episodes are stored elsewhere too; those that are not here are passed over.

        Raises:
            UnavailableError: the index cannot be written; they count as not uploaded.
            CorruptDataError: it is damaged.
        """
        names = list(episode_ids)
        self.refresh()
        with self._looking:
            if self.index_problem is not None:
                raise UnavailableError(f"cannot note uploads: {self.index_problem}")
            self._current().index.set_uploaded(names, time.time_ns())

    def refresh(self, *, full: bool = False) -> None:
        """Bring the index up to the files; `full` also finds closed files that changed in place.

        Raises:
            UnavailableError: the directory cannot be read.
        """
        with self._looking:
            follower = self._current()
            with self._lock:
                deleted, self._deleted = self._deleted, set()
            try:
                self._follow(follower, full, deleted)
            except BrainError:
                with self._lock:
                    self._deleted |= deleted
                raise

    def ask(self, call: Callable[[EpisodeIndex], T]) -> T:
        """Return what `call` makes of the index; where its file fails, of one in memory that the files give.

        Raises:
            UnavailableError: the directory cannot be read either.
        """
        follower = self._current()
        try:
            return call(follower.index)
        except BrainError as error:
            return call(self._replace(follower, error).index)

    def mend(self) -> None:
        """Go back from an index in memory to its file, if that can be used again."""
        with self._looking:
            if self.index_problem is None:
                return
            try:
                index = self._open_file()
            except BrainError as error:
                self.index_problem = error.detail
                return
            in_memory = self._current()
            try:
                mended = self._followed(index)
                index.add_wear(in_memory.index.wear())
            except BrainError as error:
                index.close()
                self.index_problem = error.detail
                return
            with self._lock:
                self._follower, self.index_problem = mended, None
            in_memory.index.close()
            _LOG.info("the catalogue is in %s again", self._database)

    def open(self) -> None:
        """Open the index's file, or go without it and say so in `index_problem`."""
        self._current()

    def stop(self) -> None:
        """Have a long look at many files end soon, before `close`."""
        self._stopping = True

    def close(self) -> None:
        """Close the index."""
        with self._looking, self._lock:
            if self._follower is not None:
                self._follower.index.close()
                self._follower = None

    def _current(self) -> Follower:
        """Return the follower of the index that is in use; the first call opens it."""
        with self._lock:
            if self._follower is None:
                try:
                    index = self._open_file()
                except (ConfigError, UnavailableError) as error:
                    self._say_in_memory(error)
                    index = EpisodeIndex(None)
                self._follower = self._following(index)
            return self._follower

    def _following(self, index: EpisodeIndex) -> Follower:
        return Follower(self._root, self._opened, index, self.damaged)

    def _follow(self, follower: Follower, full: bool, again: Collection[str]) -> None:
        """Bring an index up to the files, or have one in memory take its place.

        Raises:
            UnavailableError: the directory cannot be read.
        """
        for changes in follower.changes(lambda: self._stopping, full=full, again=again):
            try:
                follower.apply(changes)
            except BrainError as error:
                self._replace(follower, error)
                return

    def _followed(self, index: EpisodeIndex) -> Follower:
        """Return the follower of an index after it has looked at every file.

        Raises:
            UnavailableError: the directory cannot be read.
            BrainError: the index fails.
        """
        follower = self._following(index)
        for changes in follower.changes(lambda: self._stopping, full=True):
            follower.apply(changes)
        return follower

    def _replace(self, broken: Follower, error: BrainError) -> Follower:
        """Return the follower that took the place of one whose index failed: one in memory, made of the files.

        Raises:
            BrainError: `error`, where the index that failed was in memory.
            UnavailableError: the directory cannot be read.
        """
        with self._looking:
            current = self._current()
            if current is not broken:
                return current
            if self._database is None or self.index_problem is not None:
                raise error
            in_memory = self._followed(EpisodeIndex(None))
            with contextlib.suppress(BrainError):
                in_memory.index.add_uploads(broken.index.uploads(), broken.index.uploaded_logs())
            with self._lock:
                self._follower = in_memory
                self._say_in_memory(error)
            broken.index.close()
            return in_memory

    def _say_in_memory(self, error: BrainError) -> None:
        _LOG.error("the catalogue's file fails, it is kept in memory until that is mended: %s", error.detail)
        self.index_problem = error.detail

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

    def _row(self, episode_id: str) -> EpisodeRow | None:
        """Return what the index knows of an episode; None where it fails."""
        with contextlib.suppress(BrainError):
            return self.ask(lambda index: index.get(episode_id))
        return None

    def _has_ended(self, episode_id: str, path: Path) -> bool:
        """Tell whether a log has its end; of one that cannot be read any more, whether it had.

        Raises:
            NotFoundError: no such file.
            UnavailableError: the medium cannot read it, and it was open when it last could.
        """
        try:
            return catalogue.read_end(path) is not None
        except UnavailableError:
            row = self._row(episode_id)
            if row is None or row.is_open:
                raise
            return True

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
                return catalogue.describe(self._root / row.file).summary
        return dict(row.summary)

    def _shown(self, summary: dict[str, Any], path: Path, row: EpisodeRow | None) -> dict[str, Any]:
        """Add to a summary what its file and the index tell; a row of another episode of this id tells nothing."""
        if row is not None and row.created_ns != summary["created_ns"]:
            row = None
        size_bytes = 0
        if row is not None and not row.is_open and row.file == path.name:
            size_bytes = row.size_bytes
        else:
            with contextlib.suppress(OSError):
                size_bytes = path.stat().st_size + catalogue.images_bytes(self._root, summary["episode_id"])
        return summary | {
            "size_bytes": size_bytes,
            "compressed": path.suffix == ARCHIVE_SUFFIX,
            "converted": row is not None and row.converted,
            "uploaded": row is not None and row.uploaded_ns is not None,
        }
