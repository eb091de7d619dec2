"""The episodes that this process writes: found by id, recovered after a crash, closed when left idle."""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from brain_service.durable import fsync_directory
from brain_service.episodes import catalogue
from brain_service.episodes.flusher import Flusher
from brain_service.episodes.header import EpisodeHeader
from brain_service.episodes.medium import Medium
from brain_service.episodes.recovery import RecoveryReport, looks_like_seed, quarantine, recover, settle, sweep
from brain_service.episodes.wear import WearMeter
from brain_service.episodes.writer import EpisodeWriter
from brain_service.errors import (
    BrainError,
    ConflictError,
    CorruptDataError,
    NotFoundError,
    TooManyError,
    UnavailableError,
)
from brain_service.settings import CaptureSettings

__all__ = ["OpenEpisodes"]

_LOG = logging.getLogger(__name__)
_REPORTS_KEPT = 100


class _Watcher:
    """Somebody who wants to know how far an episode is on the medium, before its log may have been opened."""

    def __init__(self, episode_id: str, loop: asyncio.AbstractEventLoop, callback: Callable[[int], None]) -> None:
        self.episode_id = episode_id
        self._loop = loop
        self._callback = callback
        self._left = False
        self._lock = threading.Lock()
        self._undo: list[Callable[[], None]] = []

    def follow(self, writer: EpisodeWriter) -> None:
        """Listen to an open episode, in place of what was listened to before; not once it has stopped."""
        with self._lock:
            self._unfollow()
            if not self._left:
                self._undo.append(writer.watch(self._loop, self._callback))

    def stop(self) -> None:
        """Listen no more, also not to a log that another thread opens just now."""
        with self._lock:
            self._left = True
            self._unfollow()

    def _unfollow(self) -> None:
        while self._undo:
            self._undo.pop()()


class _Opening:
    """The lock under which a log is opened, and how many are at it or wait for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0


class OpenEpisodes:
    """Writers by episode id. A log is recovered by whoever asks for it first: a live robot or `recover_all`.

    `reports` says what recovery found; what the medium refuses is noted in `medium`.
    """

    def __init__(
        self,
        root: Path,
        settings: CaptureSettings,
        flusher: Flusher,
        wear: WearMeter | None = None,
        medium: Medium | None = None,
    ) -> None:
        self.reports: deque[dict[str, Any]] = deque(maxlen=_REPORTS_KEPT)
        self._root = root
        self._settings = settings
        self._flusher = flusher
        self._wear = wear
        self._medium = medium or Medium(root, settings.min_free_bytes)
        self._watchers: dict[_Watcher, None] = {}
        self._writers: dict[str, EpisodeWriter] = {}
        self._recovered: set[str] = set()
        self._settled: set[str] = set()
        # Logs whose names are on the medium: those of the start, by one flush for all of them.
        self._named: frozenset[str] = frozenset()
        self._opening: dict[str, _Opening] = {}
        # Ids of episodes that are being created: each takes a place before its log is there.
        self._placed: set[str] = set()
        self._placing = threading.Lock()
        self._lock = threading.Lock()

    def writers(self) -> list[EpisodeWriter]:
        """Return the writers of all episodes that are open now."""
        with self._lock:
            return [writer for writer in self._writers.values() if writer.ended is None]

    def known(self, episode_id: str) -> EpisodeWriter | None:
        """Return the writer if the episode is open here already; touches no file."""
        return self._writers.get(episode_id)

    def by_idempotency_key(self, key: str) -> EpisodeHeader | None:
        """Return the header of the open episode that a request with this key created."""
        with self._lock:
            headers = [writer.header for writer in self._writers.values()]
        return next((header for header in headers if header.idempotency_key == key), None)

    def find(self, episode_id: str) -> EpisodeWriter | None:
        """Return the writer, recovering the log if need be; None if it ended or another process writes it.

        An end that an earlier process wrote is on the medium then.

        Raises:
            NotFoundError: no such episode.
            CorruptDataError: the file is a copy of another episode's log.
            UnavailableError: its log cannot be recovered now.
        """
        writer = self._writers.get(episode_id)
        if writer is not None:
            return writer
        path = catalogue.episode_path(self._root, episode_id)
        with self._opens(episode_id):
            writer = self._writers.get(episode_id)
            if writer is None and catalogue.read_end(path) is None:
                writer = self._recover(episode_id, path)
            elif writer is None and episode_id not in self._settled:
                settle(path, name=episode_id not in self._named)
                self._settled.add(episode_id)
        return writer

    @contextlib.contextmanager
    def _opens(self, episode_id: str) -> Iterator[None]:
        """Keep others from opening the same log meanwhile; the lock goes with the last who wants it."""
        with self._lock:
            opening = self._opening.setdefault(episode_id, _Opening())
            opening.users += 1
        try:
            with opening.lock:
                yield
        finally:
            with self._lock:
                opening.users -= 1
                if not opening.users:
                    del self._opening[episode_id]

    def create(self, header: EpisodeHeader) -> None:
        """Begin an episode; its header is durable before the return.

        Raises:
            ConflictError: the episode exists.
            TooManyError: `max_open_episodes` are open, and none of them is idle that long.
            TooLargeError: the header is over its limit.
            UnavailableError: the medium refuses.
        """
        path = catalogue.episode_path(self._root, header.episode_id)
        with self._place(header.episode_id):
            self.add(EpisodeWriter.create(path, header, self._settings, self._flusher, self._wear))

    @contextlib.contextmanager
    def _place(self, episode_id: str) -> Iterator[None]:
        """Hold a place for one more open episode; for its sake those end as `recovered` that were abandoned.

        Only where places run out, the longest idle first, and none that a step reached within `recover_idle_s`:
        its robot may be waiting for something, and is told of an end only when it goes on.
        """
        limit = self._settings.max_open_episodes
        with self._placing:
            before_s = time.monotonic() - self._settings.recover_idle_s
            for writer in sorted(self.writers(), key=lambda writer: writer.last_used_s):
                if len(self._taken()) < limit or writer.last_used_s > before_s:
                    break
                self._end_if_idle(writer)
            count = len(self._taken())
            # A name that has a place already needs no second one; its creation tells what is wrong with it.
            if count >= limit and episode_id not in self._taken():
                raise TooManyError(
                    f"{count} episodes are open, the limit is max_open_episodes = {limit}: "
                    "end some with POST /episodes/{id}/end"
                )
            mine = episode_id not in self._placed
            self._placed.add(episode_id)
        try:
            yield
        finally:
            if mine:
                with self._placing:
                    self._placed.discard(episode_id)

    def _taken(self) -> set[str]:
        return self._placed | {writer.header.episode_id for writer in self.writers()}

    def watch(
        self, episode_id: str, loop: asyncio.AbstractEventLoop, callback: Callable[[int], None]
    ) -> Callable[[], None]:
        """Have `callback(durable_through)` run on `loop` whenever it grows, also once a log is recovered later.

        The return value unsubscribes.
        """
        watcher = _Watcher(episode_id, loop, callback)
        with self._lock:
            self._watchers[watcher] = None
            writer = self._writers.get(episode_id)
        if writer is not None:
            watcher.follow(writer)

        def unwatch() -> None:
            with self._lock:
                self._watchers.pop(watcher, None)
            watcher.stop()

        return unwatch

    def add(self, writer: EpisodeWriter, *, recovered: bool = False) -> None:
        """Enter an open episode; only a recovered one closes by itself when idle."""
        writer.report = self.reports.append
        with self._lock:
            self._writers[writer.header.episode_id] = writer
            if recovered:
                self._recovered.add(writer.header.episode_id)
            watchers = [it for it in self._watchers if it.episode_id == writer.header.episode_id]
        for watcher in watchers:
            watcher.follow(writer)

    def forget(self, episode_id: str) -> None:
        """Drop an episode that has ended."""
        with self._lock:
            self._writers.pop(episode_id, None)
            self._recovered.discard(episode_id)

    def close(self) -> None:
        """Flush and release every log without ending it."""
        for writer in self.writers():
            writer.close()
            self.forget(writer.header.episode_id)

    def recover_all(self, stopping: threading.Event) -> None:
        """Recover every log that the last run left open, and put what is no log into quarantine."""
        sweep(self._root)
        try:
            episode_ids = catalogue.list_ids(self._root)
        except UnavailableError as error:
            self._medium.last_error = error.detail
            return
        with contextlib.suppress(OSError):  # then each log flushes its own
            fsync_directory(self._root)
            self._named = frozenset(episode_ids)
        for episode_id in episode_ids:
            if stopping.is_set():
                return
            self._recover_quietly(episode_id)

    def end_idle(self) -> None:
        """End recovered episodes as `recovered` that nobody went on with for `recover_idle_s` seconds."""
        with self._lock:
            recovered = [self._writers[name] for name in self._recovered]
        for writer in recovered:
            self._end_if_idle(writer)

    def _end_if_idle(self, writer: EpisodeWriter) -> None:
        try:
            if writer.end_if_idle(self._settings.recover_idle_s):
                self.forget(writer.header.episode_id)
        except BrainError as error:
            self._medium.last_error = error.detail

    def _recover(self, episode_id: str, path: Path) -> EpisodeWriter | None:
        try:
            catalogue.read_header(path)
            file, found, report = recover(path)
        except ConflictError:
            return None
        self.reports.append(report.to_json())
        if report.bytes_cut:
            _LOG.warning("episode %s was damaged: %s", episode_id, report.to_json())
        if found.end is not None:
            file.close()
            return None
        writer = EpisodeWriter(file, found, self._settings, self._flusher, self._wear)
        self.add(writer, recovered=True)
        return writer

    def _recover_quietly(self, episode_id: str) -> None:
        path = catalogue.episode_path(self._root, episode_id)
        try:
            self.find(episode_id)
        except (NotFoundError, CorruptDataError) as error:
            self._quarantine(path, error.detail)
        except BrainError as error:
            self._medium.last_error = error.detail
            _LOG.error("episode %s cannot be recovered: %s", episode_id, error.detail)
        except Exception as error:  # noqa: BLE001 - what one log holds must not keep the others from being recovered
            self._medium.last_error = f"episode {episode_id!r} cannot be recovered: {error!r}"
            _LOG.exception("episode %s cannot be recovered", episode_id)

    def _quarantine(self, path: Path, reason: str) -> None:
        try:
            if not path.exists() or looks_like_seed(path):
                return
            size_bytes = path.stat().st_size
            moved = quarantine(path, reason)
        except (OSError, UnavailableError) as error:
            self._medium.last_error = str(error)
            return
        moved_to = f"quarantine/{moved.name}"
        report = RecoveryReport(path.stem, 0, bytes_cut=size_bytes, moved_to=moved_to, reason=reason)
        self.reports.append(report.to_json())
        _LOG.error("%s is no episode and was moved to %s: %s", path.name, moved, reason)
