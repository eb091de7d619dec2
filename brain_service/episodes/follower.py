"""One index that follows the files of a directory: what is new, changed, ended or gone since the last look.

An error of one file is that file's: it is told as damaged, and the others go on. Files are read before the index
is touched, in hundreds, so that whoever asks the index waits for no file.
"""

import errno
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from brain_service.episodes import catalogue
from brain_service.episodes.index import EpisodeIndex, EpisodeRow
from brain_service.episodes.log import io_problem
from brain_service.episodes.open_episodes import OpenEpisodes
from brain_service.errors import BrainError, CorruptDataError, NotFoundError, UnavailableError

__all__ = ["Changes", "Follower"]

_LOG = logging.getLogger(__name__)
_AT_ONCE = 100
# Directory times advance in steps of the kernel's tick: a change this soon after the last one may not show.
_TICK_NS = 50_000_000
# A bad sector can take seconds to say so: not at every look.
_RETRY_S = 10.0
# Not the file's fault: no look can be made now, and no file is the worse for it.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

_Stamp = tuple[str, int, int]  # name, size in bytes, modification time in ns


@dataclass(slots=True)
class Changes:
    """What a look found: rows to put into the index, and ids of episodes to take out of it."""

    rows: list[EpisodeRow] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)


class Follower:
    """Keeps `index` up to the files under `root`. For one thread at a time, while any may ask the index.

    It knows what it has seen for this index only: another index gets another follower. Files that cannot be read
    are told in `damaged`, by episode id.
    """

    def __init__(self, root: Path, opened: OpenEpisodes, index: EpisodeIndex, damaged: dict[str, str]) -> None:
        self.index = index
        self._root = root
        self._opened = opened
        self._damaged = damaged
        self._known = index.files()
        # Files that gave no row, and when to try them again, in seconds of the monotonic clock.
        self._refused: dict[str, tuple[_Stamp | None, float]] = {}
        # The names of the last whole look; None: there was none yet.
        self._names: set[str] | None = None
        self._seen_ns: int | None = None

    def changes(
        self, stopping: Callable[[], bool], *, full: bool, again: Collection[str] = ()
    ) -> Iterator[Changes]:
        """Yield what has changed since the last look, to be given to `apply` one by one.

        `full` looks at every file, `again` names episodes to look at in any case. Where it is not taken to its
        end, the next look begins where this one did; so it does after `stopping` said so.

        Raises:
            UnavailableError: the directory cannot be read, or the process has no means to read a file.
        """
        names, seen_ns = self._look(full)
        batch = Changes()
        for count, episode_id in enumerate(self._suspects(names, full).union(again), start=1):
            if stopping():
                return
            self._examine(episode_id, batch)
            if count % _AT_ONCE == 0:
                yield batch
                batch = Changes()
        yield batch
        self._names, self._seen_ns = names, seen_ns

    def apply(self, changes: Changes) -> None:
        """Bring changes into the index.

        Raises:
            BrainError: the index fails.
        """
        if changes.gone:
            self.index.remove(changes.gone)
        if changes.rows:
            self.index.put(changes.rows)
        for episode_id in changes.gone:
            del self._known[episode_id]
        for row in changes.rows:
            self._known[row.episode_id] = row.known

    def _look(self, full: bool) -> tuple[set[str], int | None]:
        """Return the names of the directory, and its time once that is sure to tell the next change."""
        try:
            changed_ns = self._root.stat().st_mtime_ns
        except OSError as error:
            raise io_problem(error, f"list {self._root}") from error
        if self._names is not None and changed_ns == self._seen_ns and not full:
            return self._names, changed_ns
        settled = time.time_ns() - changed_ns > _TICK_NS
        return catalogue.list_names(self._root), changed_ns if settled else None

    def _suspects(self, names: set[str], full: bool) -> set[str]:
        """Return the ids of files that are new or gone, may have ended, or failed a while ago."""
        every = full or self._names is None
        changed = names if every else names ^ (self._names or set())
        found = {episode_id for name in changed if (episode_id := catalogue.id_of_file(name)) is not None}
        if every:
            found |= self._known.keys()
        found |= {episode_id for episode_id, known in self._known.items() if known.is_open}
        now_s = time.monotonic()
        found |= {episode_id for episode_id, (_, due_s) in self._refused.items() if due_s <= now_s}
        for writer in self._opened.writers():
            known = self._known.get(writer.header.episode_id)
            if known is not None and known.is_open and known.created_ns == writer.header.created_ns:
                found.discard(writer.header.episode_id)
            else:
                # It may have been seen, and found damaged, before its recovery cut it.
                found.add(writer.header.episode_id)
        return found

    def _examine(self, episode_id: str, batch: Changes) -> None:
        """Add to `batch` what a file's present state changes in the index.

        Raises:
            UnavailableError: it cannot be read, and not for a fault of its own.
        """
        known = self._known.get(episode_id)
        stamp: _Stamp | None = None
        row: EpisodeRow | None = None
        try:
            stamp = _stamp(self._root, episode_id)
            if known is not None and known[:3] == stamp:
                # As it was when it was read, and again so if it was not in between.
                if self._refused.pop(episode_id, None) is not None:
                    self._damaged.pop(episode_id, None)
                return
            if stamp is not None:
                refused, due_s = self._refused.get(episode_id, (None, 0.0))
                if refused == stamp and time.monotonic() < due_s:
                    return
                row = self._row(episode_id, stamp)
        except (NotFoundError, CorruptDataError) as error:
            self._refuse(episode_id, stamp, error, math.inf)
        except UnavailableError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _SHORTAGES:
                raise
            # What is known of it stays: a medium that fails for a while takes nothing out of the catalogue.
            self._refuse(episode_id, stamp, error, time.monotonic() + _RETRY_S)
            return
        else:
            self._refused.pop(episode_id, None)
            self._damaged.pop(episode_id, None)
        if row is None and known is not None:
            batch.gone.append(episode_id)
        # One that another process goes on writing changes all the time: not worth wearing the card for.
        elif row is not None and not (
            known is not None and known.is_open and row.is_open and known.created_ns == row.created_ns
        ):
            batch.rows.append(row)

    def _row(self, episode_id: str, stamp: _Stamp) -> EpisodeRow:
        """Read a file.

        Raises:
            NotFoundError: it is no capture log, or gone.
            CorruptDataError: it is damaged.
            UnavailableError: the medium cannot read it.
        """
        found = catalogue.describe(self._root / stamp[0])
        size_bytes = stamp[1] + catalogue.images_bytes(self._root, episode_id)
        return EpisodeRow(
            *(episode_id, *stamp, size_bytes, found.summary),
            sha256=found.sha256,
            idempotency_key=found.header.idempotency_key,
        )

    def _refuse(self, episode_id: str, stamp: _Stamp | None, error: BrainError, due_s: float) -> None:
        """Note a file that gives no row, and when to try again."""
        self._refused[episode_id] = (stamp, due_s)
        if isinstance(error, NotFoundError):
            # Without our header it is somebody else's file, not a damaged one.
            self._damaged.pop(episode_id, None)
        elif self._damaged.get(episode_id) != error.detail:
            self._damaged[episode_id] = error.detail
            _LOG.error("episode %s is damaged or cannot be read: %s", episode_id, error.detail)


def _stamp(root: Path, episode_id: str) -> _Stamp | None:
    """Return name, size and time of an episode's file, None if there is none.

    An archive appears before its log goes, so that one of the two is there at every moment.

    Raises:
        UnavailableError: the medium cannot tell.
    """
    for name in catalogue.file_names(episode_id):
        try:
            stat = os.stat(f"{root}/{name}")  # noqa: PTH116 - three times as fast, for each of thousands
        except FileNotFoundError:
            continue
        except OSError as error:
            raise io_problem(error, f"read episode {episode_id!r}") from error
        return name, stat.st_size, stat.st_mtime_ns
    return None
