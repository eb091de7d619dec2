"""What is done with episodes while nobody waits: index, digests, compression, retention, wear.

One thread at the lowest priority. Each task stands alone: one that fails says so and comes round again.
"""

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brain_service.episodes.archive import compress_log
from brain_service.episodes.images import sweep_images
from brain_service.episodes.index import EpisodeRow
from brain_service.episodes.library import Library
from brain_service.episodes.log import io_problem
from brain_service.episodes.reader import episode_digest
from brain_service.episodes.retention import HeldEpisodes, RetentionPlan, is_wanted, plan_retention
from brain_service.episodes.wear import WearMeter
from brain_service.errors import BrainError, ConflictError, CorruptDataError, NotFoundError, UnavailableError
from brain_service.settings import CaptureSettings, RetentionSettings

__all__ = ["Housekeeper"]

_LOG = logging.getLogger(__name__)
_TICK_S = 2.0
_MINUTE_S = 60.0
_FULL_MINUTES = 10  # a look at every file takes a millisecond for each hundred
_AT_ONCE = 100  # so that no task keeps the others waiting, and no transaction grows large
_LOWEST = 19
_END_OF_TIME_NS = 2**63 - 1


class Housekeeper:
    """Keeps the episodes of a library in order, in a thread of its own between `start` and `close`."""

    def __init__(
        self,
        root: Path,
        library: Library,
        wear: WearMeter,
        settings: CaptureSettings,
        retention: RetentionSettings,
        datasets_dir: Path | None,
    ) -> None:
        self._root = root
        self._library = library
        self._wear = wear
        self._settings = settings
        self._retention = retention
        self._held = HeldEpisodes(datasets_dir)
        self._held_lock = threading.Lock()
        self._stopping = threading.Event()
        self._refused: set[tuple[str, int]] = set()
        # Logs that could not be compressed: until when they are left alone, and why where the medium refused.
        self._later: dict[tuple[str, int], tuple[float, OSError | None]] = {}
        self._failed: dict[str, str] = {}
        self._deleted_episodes = 0
        self._deleted_bytes = 0
        self._blocked: str | None = None
        self._counts: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._run, name="capture-housekeeping", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop soon, even in the middle of a file, and save what was counted."""
        self._stopping.set()
        self._library.stop()
        if self._thread.ident is not None:
            self._thread.join()
            self._attempt("wear", self.save_wear)

    def status(self) -> dict[str, Any]:
        """Return counts of the catalogue, what retention did, the wear, and what fails, by task."""
        return {
            "catalogue": dict(self._counts),
            "damaged": dict(self._library.damaged),
            "index_problem": self._library.index_problem,
            "retention": {
                "deleted_episodes": self._deleted_episodes,
                "deleted_bytes": self._deleted_bytes,
                "blocked": self._blocked,
            },
            "wear": {"bytes_today": self._wear.bytes_today, "bytes_per_day": self._wear.bytes_per_day},
            "failed_tasks": dict(self._failed),
        }

    def plan(self) -> RetentionPlan:
        """Return what retention would delete now.

        Raises:
            UnavailableError: the directory cannot be read.
        """
        self._library.refresh()
        # A log whose digest cannot be read counts as held by no dataset, and `datasets` tells of it.
        with contextlib.suppress(UnavailableError):
            self.note_converted()
        try:
            free_bytes = shutil.disk_usage(self._root).free
        except OSError as error:
            raise io_problem(error, f"read the file system of {self._root}") from error
        total_bytes, oldest_ns = self._library.ask(lambda index: index.extent())
        if not is_wanted(total_bytes, oldest_ns, free_bytes, self._retention):
            return RetentionPlan(())
        ended = self._library.ask(lambda index: index.ended())
        with self._held_lock:
            return plan_retention(ended, total_bytes, free_bytes, self._retention, self._held.digests)

    def retain(self) -> RetentionPlan:
        """Delete what the plan names and return the plan.

        Raises:
            UnavailableError: the medium refuses one of them; the others are deleted.
        """
        plan = self.plan()
        self._blocked = plan.blocked
        problem: BrainError | None = None
        for doomed in plan.doomed:
            if self._stopping.is_set():
                break
            try:
                self._library.delete(doomed.episode_id)
            except (NotFoundError, ConflictError):
                continue
            except BrainError as error:
                problem = problem or error
                continue
            self._deleted_episodes += 1
            self._deleted_bytes += doomed.size_bytes
            _LOG.info("retention deleted episode %s (%s)", doomed.episode_id, doomed.reason)
        if problem is not None:
            raise problem
        return plan

    def note_converted(self) -> None:
        """Bring up to date which episodes the datasets hold.

        A digest is computed only for a log whose name some dataset lists.

        Raises:
            UnavailableError: a log or the index cannot be read; the other logs were.
        """
        with self._held_lock:
            changed = self._held.refresh()
            held_names, digests = self._held.names, self._held.digests
        known: dict[str, str] = {}
        problem: UnavailableError | None = None
        for episode_id, file in self._library.ask(lambda index: index.without_digest()) if held_names else ():
            if file in held_names and not self._stopping.is_set():
                try:
                    known[episode_id] = episode_digest(self._root / file)
                except (NotFoundError, CorruptDataError):
                    continue
                except UnavailableError as error:
                    problem = problem or error
            if len(known) == _AT_ONCE:
                changed = self._save_digests(known)
                known = {}
        if known:
            changed = self._save_digests(known)
        if changed:
            self._library.ask(lambda index: index.set_converted(digests))
        if problem is not None:
            raise problem

    def compress(self) -> int:
        """Compress some of the logs that ended and lay untouched for `compress_after_s` seconds; return how many.

        One that cannot be compressed now holds up no other, and is tried again a minute later.

        Raises:
            OSError: the medium refuses one of them, which stays; the others were seen to.
        """
        compress_after_s = self._settings.compress_after_s
        if compress_after_s is None:
            return 0
        now_s = time.monotonic()
        self._later = {key: entry for key, entry in self._later.items() if entry[0] > now_s}
        done = 0
        for row in self._idle_logs(compress_after_s):
            key = (row.file, row.mtime_ns)
            if key in self._refused or key in self._later:
                continue
            if self._stopping.is_set() or done == _AT_ONCE:
                break
            if shutil.disk_usage(self._root).free < row.file_bytes:
                self._later[key] = (now_s + _MINUTE_S, None)
                continue
            try:
                compress_log(self._root / row.file, wrote=self._wear.add, stopping=self._stopping.is_set)
                done += 1
            except CorruptDataError as error:
                self._refused.add(key)
                self._library.damaged[row.episode_id] = error.detail
                _LOG.error("episode %s is not compressed: %s", row.episode_id, error.detail)
            except FileNotFoundError:
                continue  # deleted meanwhile
            except OSError as error:
                self._later[key] = (now_s + _MINUTE_S, error)
        if done:
            self._library.refresh()
        for _, problem in self._later.values():
            if problem is not None:
                raise problem
        return done

    def _idle_logs(self, compress_after_s: float) -> list[EpisodeRow]:
        """Return logs that may be compressed, oldest first; behind them those that the future wrote."""
        now_ns = time.time_ns()
        limit = _AT_ONCE + len(self._refused) + len(self._later)
        idle = self._library.ask(lambda index: index.uncompressed(now_ns - round(compress_after_s * 1e9), limit))
        if len(idle) == limit:
            return idle
        # What was written while the clock was ahead would otherwise wait until the clock gets there.
        every = self._library.ask(lambda index: index.uncompressed(_END_OF_TIME_NS, limit))
        return idle + [row for row in every if row.mtime_ns > now_ns]

    def save_wear(self) -> None:
        """Add what was written since the last time to the sums of the days.

        Raises:
            UnavailableError: the index cannot be written; the next call saves it.
        """
        unsaved = self._wear.take_unsaved()
        try:
            self._library.ask(lambda index: index.add_wear(unsaved))
        except BrainError:
            self._wear.give_back(unsaved)
            raise

    def _save_digests(self, digests: dict[str, str]) -> bool:
        self._library.ask(lambda index: index.set_digests(digests))
        return True

    def _run(self) -> None:
        # Capture and inference come first. Linux has priorities for single threads.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
        self._attempt("images", lambda: sweep_images(self._root))
        self._attempt("index", lambda: self._library.refresh(full=True))
        self._attempt("wear", lambda: self._wear.restore(self._library.ask(lambda index: index.wear())))
        due_s, minutes = time.monotonic(), 0
        while not self._stopping.is_set():
            self._attempt("index", self._library.refresh)
            if time.monotonic() >= due_s:
                due_s, minutes = time.monotonic() + _MINUTE_S, minutes + 1
                if minutes % _FULL_MINUTES == 0:
                    self._attempt("index", lambda: self._library.refresh(full=True))
                self._attempt("wear", self.save_wear)
                self._attempt("retention", self.retain)
                self._attempt("mending", self._library.mend)
            self._attempt("compression", self.compress)
            self._attempt("datasets", self.note_converted)
            self._attempt("catalogue", self._count)
            self._stopping.wait(_TICK_S)

    def _count(self) -> None:
        self._counts = self._library.ask(lambda index: index.counts())

    def _attempt(self, task: str, call: Callable[[], object]) -> None:
        """Run a task; a failure is kept for `status` until it succeeds again."""
        try:
            call()
        except (BrainError, OSError) as error:
            reason = error.detail if isinstance(error, BrainError) else io_problem(error, task).detail
            if self._failed.get(task) != reason:
                _LOG.error("housekeeping: %s failed: %s", task, reason)
            self._failed[task] = reason
        except Exception as error:  # noqa: BLE001 - a defect in one task must not end the others
            if self._failed.get(task) != repr(error):
                _LOG.exception("housekeeping: %s failed", task)
            self._failed[task] = repr(error)
        else:
            self._failed.pop(task, None)
