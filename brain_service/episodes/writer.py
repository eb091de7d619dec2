"""One open episode: takes steps into its log, answers retries, follows the flushes, ends it."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from brain_service.episodes.answers import Appended, Ended, EndReason, Taken
from brain_service.episodes.archive import ARCHIVE_SUFFIX
from brain_service.episodes.durable_mark import DurableMark, WhenDurable
from brain_service.episodes.endings import end_record, require_same_end
from brain_service.episodes.flusher import Flusher
from brain_service.episodes.header import Durability, EpisodeHeader
from brain_service.episodes.images import ImageStore
from brain_service.episodes.log import EpisodeFile
from brain_service.episodes.log_format import decode_line, encode_line
from brain_service.episodes.rate import StepRate
from brain_service.episodes.recovery import LogScan, RecoveryReport
from brain_service.episodes.schema import StepIn
from brain_service.episodes.step_lines import NewLines, StepLines, Tail
from brain_service.episodes.wear import WearMeter
from brain_service.episodes.wire import BodyKind
from brain_service.errors import BrainError, ConflictError, CorruptDataError, TooLargeError, UnavailableError
from brain_service.settings import CaptureSettings
from brain_service.spec import EpisodeSpec

__all__ = ["EpisodeWriter"]

_LOG = logging.getLogger(__name__)


class EpisodeWriter:
    """The one writer of an open episode. Every method may be called from any thread but an event loop's."""

    def __init__(
        self,
        file: EpisodeFile,
        found: LogScan,
        settings: CaptureSettings,
        flusher: Flusher,
        wear: WearMeter | None = None,
    ) -> None:
        self.header = found.header
        self.last_used_s = time.monotonic()
        self.ended: Ended | None = None
        self.report: Callable[[dict[str, Any]], None] = lambda _: None
        self._file = file
        self._offsets = found.offsets
        self._tail = Tail(len(found.offsets), found.spec, found.last_is_terminal)
        self._settings = settings
        self._flusher = flusher
        self._images = ImageStore.beside(file.path)
        self._lines = StepLines(found.header, settings, self._stored, self._images)
        self._rate = StepRate(
            settings.max_steps_per_s, max(float(settings.max_batch_steps), settings.max_steps_per_s)
        )
        self._lock = threading.Lock()
        self._mark = DurableMark(self.steps - 1)
        # Replaced whole, so that a flush sees a number of steps and the size that belongs to it.
        self._written = self._durable = (self.steps, file.size_bytes)
        self._unsynced_since_s: float | None = None
        self._end_line: bytes | None = None
        durability: Durability = found.header.durability or settings.durability
        self.answers_when_durable = durability == "step"
        self._flushes_by_itself = durability != "episode"
        self._wear = wear
        if wear is not None:
            file.written = self._images.written = wear.add

    @classmethod
    def create(
        cls,
        path: Path,
        header: EpisodeHeader,
        settings: CaptureSettings,
        flusher: Flusher,
        wear: WearMeter | None = None,
    ) -> "EpisodeWriter":
        """Create the log at `path`, durable before the return.

        Raises:
            ConflictError: the episode exists.
            UnavailableError: the medium refuses.
            InvalidError: the header's metadata has no JSON form.
        """
        line = encode_line(header.record())
        if len(line) > settings.max_step_bytes:
            raise TooLargeError(f"the header has {len(line)} bytes, the limit is {settings.max_step_bytes}")
        if path.with_name(path.name + ARCHIVE_SUFFIX).exists():
            raise ConflictError(f"episode {header.episode_id!r} exists; choose another episode_id")
        file = EpisodeFile.create(path, line)
        if wear is not None:
            wear.add(len(line))
        return cls(file, LogScan(header, len(line), header.features), settings, flusher, wear)

    @property
    def steps(self) -> int:
        """Number of accepted steps, which is the next step index."""
        return self._tail.steps

    @property
    def spec(self) -> EpisodeSpec | None:
        """The features of a step, None until the first one has fixed them."""
        return self._tail.spec

    @property
    def durable_through(self) -> int:
        """Highest step index on the medium, -1 for none."""
        return self._mark.through

    @property
    def failed(self) -> str | None:
        """Why the log takes no steps now, or None."""
        return self._file.failed

    def unsynced_s(self) -> float:
        """Return the age in seconds of the oldest step that is not on the medium, 0 if all are."""
        since_s = self._unsynced_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def append(self, bodies: Sequence[StepIn], *, batch: bool = False) -> Appended:
        """Append steps, all or none; a first part that is stored already must equal what is stored.

        `batch` puts `steps/<n>/` before the field names in errors. Under durability `step` it returns when
        the steps are on the medium.

        Raises:
            InvalidError: a step is wrong; nothing was written.
            ConflictError: a gap (with `next_step_index`), another body under a stored index, or an ended episode.
            TooLargeError: a step is over its limit.
            TooManyError: they come faster than `max_steps_per_s`.
            UnavailableError: the disk is full or fails.
        """
        with self._lock:
            self._require_open()
            new = self._lines.quick_arrays(bodies[0], self._tail) if len(bodies) == 1 else None
            new = new or self._lines.general(bodies, len(bodies), self._tail, batch=batch)
            self._rate.take(len(new.lines))
            self._write([new])
        return self.settled(Appended(new.last_index, self.durable_through, new.accepted))

    def settled(self, appended: Appended) -> Appended:
        """Return an answer when it may be given: under durability `step` once its steps are on the medium.

        Raises:
            UnavailableError: the medium refused them; they are accepted, no more.
        """
        if self.answers_when_durable:
            self._mark.wait(appended.step_index)
        return Appended(appended.step_index, self.durable_through, appended.accepted)

    def take(self, bodies: Sequence[bytes], kind: BodyKind, *, considerate: bool = False) -> Taken:
        """Append bodies in order, each all or none, and return at once, whatever the durability.

        `considerate` lets other threads have the interpreter now and then, for large bodies.
        """
        with self._lock:
            return self._take(bodies, kind, considerate)

    def take_now(self, bodies: Sequence[bytes], kind: BodyKind) -> Taken | None:
        """Append bodies as `take` does, or return None where another thread is at it: never waits for one."""
        if not self._lock.acquire(blocking=False):
            # Being brought back after a failed flush can take long; nobody has to wait for it to be told so.
            failed = self._file.failed
            return None if failed is None else Taken((), UnavailableError(failed, retry_after_s=1.0))
        try:
            return self._take(bodies, kind, considerate=False)
        finally:
            self._lock.release()

    def when_durable(self, step_index: int, call: WhenDurable) -> None:
        """Have `call` called once the step is on the medium, or the medium refused it."""
        self._mark.when(step_index, call)

    def watch(self, loop: asyncio.AbstractEventLoop, callback: Callable[[int], None]) -> Callable[[], None]:
        """Have `callback(durable_through)` run on `loop` whenever it grows; the return value unsubscribes."""
        return self._mark.watch(loop, callback)

    def end(self, reason: EndReason | None, final_observation: Mapping[str, Any] | None = None) -> Ended:
        """Write the end record and flush; None means terminated if the last step was terminal, else truncated.

        Raises:
            ConflictError: it has ended otherwise (another reason, another final observation), or `truncated`
                contradicts a terminal last step.
            InvalidError: the final observation does not fit the spec.
            UnavailableError: the medium refuses; the episode stays open.
        """
        with self._lock:
            return self._end(reason, final_observation)

    def end_if_idle(self, idle_s: float) -> bool:
        """End it as `recovered` if no step came for `idle_s` seconds; tell whether it has ended.

        Raises:
            UnavailableError: the medium refuses; the episode stays open.
        """
        with self._lock:
            if self.ended is None and time.monotonic() - self.last_used_s >= idle_s:
                self._end("recovered", None)
            return self.ended is not None

    def span(self, start: int, limit: int) -> tuple[int, int]:
        """Return offset and length in bytes of steps `start` to `start + limit - 1` in the log."""
        with self._lock:
            stop = min(start + limit, self.steps)
            if start >= stop:
                return 0, 0
            begin = self._offset(start)
            return begin, self._offset(stop) - begin

    def sync(self) -> None:
        """Flush what is accepted so far; a failure is told to those who wait, and tried again in a while."""
        since_s, self._unsynced_since_s = self._unsynced_since_s, None
        # In this order a step that arrives in between is counted as unflushed, never as flushed.
        written = self._written
        try:
            # First, so that a step on the medium has its images there.
            self._images.sync()
            if self._file.failed is None:
                self._file.sync()
            else:
                written = self._revive()
        except BrainError as error:
            self._unsynced_since_s = since_s or time.monotonic()
            refused = f"the step was accepted but {self._file.failed or error.detail}"
            self._mark.fail(UnavailableError(refused, retry_after_s=1.0))
            self._flusher.retry(self)
            return
        self._durable = written
        self._mark.advance(written[0] - 1)

    def close(self) -> None:
        """Flush and release the log without ending it; a later store goes on at the next step index."""
        self.sync()
        with self._lock:
            self._file.close()

    def _take(self, bodies: Sequence[bytes], kind: BodyKind, considerate: bool) -> Taken:
        done: list[NewLines] = []
        ready: list[NewLines] = []
        error: BrainError | None = None
        try:
            self._require_open()
            if len(bodies) > 1 and not considerate:
                each = self._lines.quick_each(bodies, kind, self._tail)
                if each is not None and self._rate.allows(len(each)):
                    ready, bodies = each, ()
            for body in bodies:
                quick = self._lines.quick(body, kind, ready[-1].tail if ready else self._tail, considerate)
                if quick is not None:
                    self._rate.take(len(quick.lines))
                    ready.append(quick)
                    continue
                # A retry among them is held against what is in the log.
                self._write(ready)
                done, ready = done + ready, []
                new = self._lines.judged(body, kind, self._tail, considerate)
                self._rate.take(len(new.lines))
                self._write([new])
                done.append(new)
        except BrainError as found:
            error = found
        # What came before the body that met the error is taken.
        try:
            self._write(ready)
            done += ready
        except BrainError as found:
            error = found
        through = self.durable_through
        return Taken([Appended(new.last_index, through, new.accepted) for new in done], error)

    def _write(self, new: Sequence[NewLines]) -> None:
        """Append the lines of requests that follow each other, in one write."""
        lines = [line for request in new for line in request.lines]
        if not lines:
            return  # retries only
        size_bytes = sum(map(len, lines))
        images = {reference: data for request in new for reference, data in request.images.items()}
        size_bytes += sum(map(len, images.values()))
        self._file.require_space(size_bytes, self._settings.min_free_bytes)
        self._images.put_all(images)
        offset = self._file.append(b"".join(lines) if len(lines) > 1 else lines[0])
        for line in lines:
            self._offsets.append(offset)
            offset += len(line)
        self._tail = new[-1].tail
        self._written = (self.steps, offset)
        if self._wear is not None:
            self._wear.count_steps(len(lines))
        self.last_used_s = time.monotonic()
        if self._unsynced_since_s is None:
            self._unsynced_since_s = self.last_used_s
            if self._flushes_by_itself:
                self._flusher.note(self, urgent=self.answers_when_durable)

    def _end(self, reason: EndReason | None, final_observation: Mapping[str, Any] | None) -> Ended:
        if self._end_line is not None:
            return require_same_end(decode_line(self._end_line), reason, final_observation, self.spec)
        if self._tail.is_terminal and reason == "truncated":
            raise ConflictError(
                f"step {self.steps - 1} of episode {self.header.episode_id!r} is terminal; end it as 'terminated'",
                field="reason",
            )
        reason = reason or ("terminated" if self._tail.is_terminal else "truncated")
        limit_bytes = self._settings.max_image_bytes
        line = encode_line(
            end_record(self.header, self.spec, self.steps, reason, final_observation, self._images, limit_bytes)
        )
        try:
            # A sound end line must vouch for every line before it: after a power cut nobody looks at those again.
            self._images.sync()
            self._file.sync()
            self._file.append(line)
            self._file.sync()
        except UnavailableError:
            self._file.take_back(self._written[1])
            self._flusher.retry(self)
            raise
        self.ended, self._end_line = Ended(self.steps, self.steps - 1, reason), line
        self._unsynced_since_s = None
        self._durable = self._written
        self._mark.advance(self.steps - 1)
        self._file.close()
        return self.ended

    def _revive(self) -> tuple[int, int]:
        """Bring the log back after a failed flush; steps that the kernel lost meanwhile are reported.

        Returns the steps and the size in bytes that are on the medium then.

        Raises:
            UnavailableError: the medium still refuses.
        """
        with self._lock:
            steps, durable_bytes = self._durable
            last: dict[str, Any] | None = None

            def is_whole(line: bytes) -> bool:
                nonlocal steps, last
                try:
                    last = decode_line(line)
                except CorruptDataError:
                    return False
                steps += 1
                return True

            lost_bytes = self._written[1] - self._file.revive(durable_bytes, is_whole)
            if lost_bytes:
                self._note_lost(steps, lost_bytes, last)
            written = self._written
        _LOG.warning("episode %s takes steps again; the medium took its flush", self.header.episode_id)
        return written

    def _note_lost(self, steps: int, lost_bytes: int, last: Mapping[str, Any] | None) -> None:
        lost = self.steps - steps
        if last is None and steps:
            last = self._stored(steps - 1)
        self._offsets.cut(steps)
        self._tail = Tail(
            steps, self.spec if steps else self.header.features, bool(last is not None and last["is_terminal"])
        )
        self._written = (steps, self._file.size_bytes)
        reason = "the medium failed to flush them and did not read them back"
        report = RecoveryReport(self.header.episode_id, steps, lost_bytes, lost, reason=reason)
        self.report(report.to_json())
        _LOG.error("episode %s lost its last %d accepted steps: %s", self.header.episode_id, lost, reason)

    def _require_open(self) -> None:
        if self.ended is not None:
            raise ConflictError(
                f"episode {self.header.episode_id!r} has ended as {self.ended.reason}; "
                "POST /episodes starts another",
                next_step_index=self.steps,
            )

    def _stored(self, index: int) -> dict[str, Any]:
        begin = self._offset(index)
        end = self._offset(index + 1)
        try:
            return decode_line(self._file.read(begin, end - begin))
        except CorruptDataError as error:
            # After a failed flush the kernel may have dropped it: until the log is brought back nobody knows.
            if self._file.failed is not None:
                raise UnavailableError(self._file.failed, retry_after_s=1.0) from error
            raise

    def _offset(self, index: int) -> int:
        """Return where the line of a step begins; for the step that comes next, where the steps end."""
        if index >= self.steps:
            return self._written[1]
        return self._offsets.locate(index, self._file.read)
