"""All episodes of a data directory: what the daemon's routes call.

Every method blocks on the medium; from an event loop call `await store.run(store.append_json, ...)`, which
moves the call to the store's own threads.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import orjson

from brain_service.episodes import catalogue
from brain_service.episodes.answers import Appended, Ended, Ingested
from brain_service.episodes.endings import parse_reason, require_same_end
from brain_service.episodes.flusher import Flusher
from brain_service.episodes.header import EpisodeHeader, body_digest
from brain_service.episodes.housekeeping import Housekeeper
from brain_service.episodes.index import NO_FILTERS, Filters
from brain_service.episodes.ingest import Ingest
from brain_service.episodes.library import Library
from brain_service.episodes.medium import Medium
from brain_service.episodes.open_episodes import OpenEpisodes
from brain_service.episodes.retention import RetentionPlan
from brain_service.episodes.schema import StepIn
from brain_service.episodes.wear import WearMeter
from brain_service.episodes.wire import body_kind
from brain_service.episodes.writer import EpisodeWriter
from brain_service.errors import (
    ConflictError,
    InvalidError,
    TooLargeError,
    UnavailableError,
)
from brain_service.metrics import Histogram
from brain_service.settings import CaptureSettings, RetentionSettings
from brain_service.spec import EpisodeSpec

__all__ = ["EpisodeStore"]

P = ParamSpec("P")
T = TypeVar("T")
Records = list[dict[str, Any]]

# Enough to share a group commit between many waiting controllers; threads start as they are needed.
_THREADS = 16
_MAX_KEY_LENGTH = 255


class EpisodeStore:
    """The capture logs under `root`. Thread-safe; methods block and must not run on an event loop."""

    def __init__(
        self,
        root: Path,
        settings: CaptureSettings,
        *,
        database: Path | None = None,
        retention: RetentionSettings | None = None,
        datasets_dir: Path | None = None,
    ) -> None:
        """Take the logs under `root`, whether there are any or not; nothing is touched before `start`.

        `database` is the file that holds the catalogue (None: it is kept in memory), `datasets_dir` where
        retention looks for datasets that hold an episode (None: none does).
        """
        self._root = root
        self._settings = settings
        self._flusher = Flusher(settings.sync_interval_s)
        self._wear = WearMeter()
        self._medium = Medium(root, settings.min_free_bytes)
        self._open = OpenEpisodes(root, settings, self._flusher, self._wear, self._medium)
        self._ingest = Ingest(self._open.known, self._writer, self._medium.note, settings.max_queued_bytes)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="capture-io")
        self._keyed = threading.Lock()
        self._library = Library(root, self._open, database)
        self._house = Housekeeper(
            root, self._library, self._wear, settings, retention or RetentionSettings(), datasets_dir
        )
        self._stopping = threading.Event()
        self._recovery_done = threading.Event()
        self._housekeeper = threading.Thread(target=self._keep_house, name="capture-recovery", daemon=True)

    def start(self) -> None:
        """Make the directory, start flushing, and recover open logs in the background.

        Raises:
            ConfigError: the directory cannot be made or written. A full disk is no reason: it refuses steps
                later, while inference goes on.
        """
        self._medium.prepare()
        self._library.open()
        self._flusher.start()
        self._ingest.start()
        self._housekeeper.start()
        self._house.start()

    def close(self) -> None:
        """Flush and release every open log; they stay open episodes for the next start."""
        self._stopping.set()
        self._ingest.close()
        self._pool.shutdown(wait=True)
        if self._housekeeper.ident is not None:
            self._housekeeper.join()
        self._house.close()
        self._flusher.close()
        self._open.close()
        self._library.close()

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one of this store's methods on its own threads and return what it returns.

        Raises:
            UnavailableError: the store is closed.
            BrainError: whatever the method raises.
        """
        loop = asyncio.get_running_loop()
        try:
            future = loop.run_in_executor(self._pool, lambda: call(*args, **kwargs))
        except RuntimeError as error:
            raise UnavailableError("the daemon is shutting down; resend to the next one") from error
        return await future

    def wait_recovered(self, timeout_s: float | None = None) -> bool:
        """Wait until the background recovery has seen every log; False after `timeout_s` seconds."""
        return self._recovery_done.wait(timeout_s)

    def stuck(self, limit_s: float) -> str:
        """Tell what of capture hangs in our own code for more than `limit_s`, or nothing; never blocks."""
        return self._flusher.stuck(limit_s)

    def create(self, body: Mapping[str, Any], idempotency_key: str | None = None) -> EpisodeHeader:
        """Start an episode from the body of `POST /episodes`; its header is durable before the return.

        The same body under the same `idempotency_key` gives the episode that it created before.

        Raises:
            InvalidError: a member is wrong, or the key is empty or longer than 255 characters.
            ConflictError: the given `episode_id` exists, or the key was used with another body.
            TooManyError: `max_open_episodes` are open.
            UnavailableError: the disk is full, read-only or failing.
        """
        header = EpisodeHeader.parse(body)
        if idempotency_key is None:
            return self._create(header)
        if not 0 < len(idempotency_key) <= _MAX_KEY_LENGTH:
            raise InvalidError(
                f"Idempotency-Key: give 1 to {_MAX_KEY_LENGTH} characters, not {len(idempotency_key)}",
                field="Idempotency-Key",
            )
        digest = body_digest(body)
        # Held over the lookup and the creation, so that two requests with one key make one episode.
        with self._keyed:
            earlier = self._open.by_idempotency_key(idempotency_key)
            earlier = earlier or self._library.by_idempotency_key(idempotency_key)
            if earlier is None:
                return self._create(replace(header, idempotency_key=idempotency_key, body_sha256=digest))
        if earlier.body_sha256 != digest:
            raise ConflictError(
                f"Idempotency-Key {idempotency_key!r} created episode {earlier.episode_id!r} from another body; "
                "use a fresh key",
                field="Idempotency-Key",
            )
        # An earlier process may have been killed before its header was on the medium.
        self._open.find(earlier.episode_id)
        return earlier

    def _create(self, header: EpisodeHeader) -> EpisodeHeader:
        self._medium.require_space()
        with self._medium.noting_errors():
            self._open.create(header)
        return header

    def append_json(self, episode_id: str, body: bytes, content_type: str = "application/json") -> Appended:
        """Append the body of `POST /episodes/{id}/steps`: a step, an array, NDJSON, or the same in msgpack.

        Raises:
            MalformedError: the bytes cannot be parsed.
            BrainError: as `append`.
        """
        writer = self._writer(episode_id)
        with self._medium.noting_errors():
            found = writer.take((body,), body_kind(content_type))
            if found.error is not None:
                raise found.error
            return writer.settled(found.appended[0])

    def ingest(
        self, episode_id: str, bodies: Sequence[bytes], content_type: str = "application/json"
    ) -> "asyncio.Future[Ingested]":
        """Append bodies of `POST /episodes/{id}/steps` in order; called on an event loop, never blocks.

        The future tells how many were accepted and what the first other one met, as `append_json` would raise
        it; an overfull queue and a closed store are told so too. It is done when they are accepted, under
        durability `step` when they are on the medium.
        """
        return self._ingest.submit(episode_id, bodies, content_type)

    def watch_durable(self, episode_id: str, callback: Callable[[int], None]) -> Callable[[], None]:
        """Have `callback(durable_through)` run on the calling event loop whenever more is on the medium.

        The return value unsubscribes. An episode that this process does not write never calls.
        """
        return self._open.watch(episode_id, asyncio.get_running_loop(), callback)

    def append(self, episode_id: str, steps: Sequence[StepIn]) -> Appended:
        """Append steps, all or none. Repeating a stored step with the same body is harmless.

        Raises:
            NotFoundError: no such episode.
            InvalidError: a step is wrong; the error names the field; nothing was written.
            ConflictError: a gap, another body under a stored index (both with `next_step_index`), an ended
                episode, or one that another process writes.
            TooLargeError: a step or the batch is over its limit.
            TooManyError: steps come faster than `max_steps_per_s`.
            UnavailableError: the disk is full, read-only or failing.
        """
        if len(steps) > self._settings.max_batch_steps:
            raise TooLargeError(
                f"{len(steps)} steps at once, the limit is {self._settings.max_batch_steps}; split them"
            )
        writer = self._writer(episode_id)
        with self._medium.noting_errors():
            return writer.append(steps, batch=len(steps) != 1)

    def end(
        self,
        episode_id: str,
        reason: str | None = None,
        final_observation: Mapping[str, Any] | None = None,
    ) -> Ended:
        """End an episode, durable before the return; the same reason again gives the same answer.

        Raises:
            NotFoundError: no such episode.
            InvalidError: an unknown reason, or a final observation that does not fit.
            ConflictError: it ended for another reason or with another final observation, or another process
                writes it.
            UnavailableError: the disk is full, read-only or failing; the episode stays open.
        """
        why = parse_reason(reason)
        writer = self._open.find(episode_id)
        if writer is None:
            stored = catalogue.read_end(catalogue.episode_path(self._root, episode_id))
            if stored is None:
                raise ConflictError(f"episode {episode_id!r} is being written by another process")
            features = None if final_observation is None else self.get(episode_id)["features"]
            spec = None if features is None else EpisodeSpec.from_json(features)
            return require_same_end(stored, reason, final_observation, spec)
        with self._medium.noting_errors():
            ended = writer.end(why, final_observation)
        self._open.forget(episode_id)
        return ended

    def get(self, episode_id: str) -> dict[str, Any]:
        """Return the summary of an episode: id, state, steps, durable_through, times, metadata, features, size.

        Raises:
            BrainError: as `Library.get`.
        """
        return self._library.get(episode_id)

    def list(
        self, limit: int = 100, cursor: str | None = None, filters: Filters = NO_FILTERS
    ) -> tuple[Records, str | None]:
        """Return up to `limit` summaries, newest first, and the cursor of the next page (None: no more).

        Raises:
            InvalidError: the cursor is none that a list gave.
            UnavailableError: the directory cannot be read.
        """
        return self._library.list(limit, cursor, filters)

    def page(self, episode_id: str, start: int, limit: int) -> Sequence[bytes]:
        """Return the records of steps `start` to `start + limit - 1` as JSON texts, as they stand in the log.

        Fewer where they would be longer than `max_page_bytes` together, but never none because of that.

        Raises:
            BrainError: as `Library.steps`.
        """
        return self._library.steps(episode_id, start, limit, self._settings.max_page_bytes)

    def steps(self, episode_id: str, start: int = 0, limit: int = 100) -> Records:
        """Return all the records that `page` may cut short, parsed.

        Raises:
            BrainError: as `Library.steps`.
        """
        return [orjson.loads(text) for text in self._library.steps(episode_id, start, limit)]

    def delete(self, episode_id: str) -> None:
        """Remove an ended episode, its images, and what recovery set aside of it.

        Raises:
            BrainError: as `Library.delete`.
        """
        self._library.delete(episode_id)

    def ended_since(self, time_ns: int) -> int:
        """Return how many episodes ended after a time, in ns.

        Raises:
            UnavailableError: the directory cannot be read.
        """
        return self._library.ended_since(time_ns)

    def mark_uploaded(self, episode_ids: Iterable[str]) -> None:
        """Note, durably, that episodes are stored elsewhere too; retention may then delete them.

        Raises:
            BrainError: the catalogue cannot be written; they count as not uploaded.
        """
        self._library.mark_uploaded(episode_ids)

    def retention_plan(self) -> RetentionPlan:
        """Return which episodes retention would delete now, oldest first, and how many must stay.

        Raises:
            UnavailableError: the directory cannot be read.
        """
        return self._house.plan()

    def apply_retention(self) -> RetentionPlan:
        """Delete what the plan names, as housekeeping does by itself, and return the plan.

        Raises:
            UnavailableError: the medium refuses.
        """
        return self._house.retain()

    @property
    def flush_durations(self) -> Histogram:
        """How long flushes to the medium took, in seconds."""
        return self._flusher.durations

    def status(self) -> dict[str, Any]:
        """Return what `/health` shows: open episodes, unflushed steps and their age, free bytes, recovery."""
        writers = self._open.writers()
        failed = next((writer.failed for writer in writers if writer.failed), None)
        return {
            "open_episodes": len(writers),
            "unsynced_steps": sum(writer.steps - 1 - writer.durable_through for writer in writers),
            "queued_bytes": self._ingest.queued_bytes,
            "unsynced_s": max((writer.unsynced_s() for writer in writers), default=0.0),
            "free_bytes": self._medium.free_bytes(),
            "min_free_bytes": self._settings.min_free_bytes,
            "recovering": not self._recovery_done.is_set(),
            "recoveries": [*self._open.reports],
            "last_error": failed or self._medium.last_error,
            "total_steps": self._wear.total_steps,
            "total_bytes": self._wear.total_bytes,
            **self._house.status(),
        }

    def _writer(self, episode_id: str) -> EpisodeWriter:
        """Return an episode that this process writes, recovering its log if need be.

        Raises:
            NotFoundError: no such episode.
            ConflictError: it has ended, or another process writes it.
            UnavailableError: its log cannot be recovered now.
        """
        writer = self._open.find(episode_id)
        if writer is None:
            end = catalogue.read_end(catalogue.episode_path(self._root, episode_id))
            why = "is being written by another process" if end is None else f"has ended as {end.get('reason')}"
            raise ConflictError(f"episode {episode_id!r} {why}; POST /episodes starts another")
        return writer

    def _keep_house(self) -> None:
        """Recover what the last run left open, then close what stays idle."""
        self._open.recover_all(self._stopping)
        self._recovery_done.set()
        while not self._stopping.wait(min(1.0, self._settings.recover_idle_s / 4)):
            self._open.end_idle()
