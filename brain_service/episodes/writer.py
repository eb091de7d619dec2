"""One open episode: checks steps against its spec, appends them, answers retries, ends it."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from brain_service.episodes.flusher import Flusher
from brain_service.episodes.header import Durability, EpisodeHeader
from brain_service.episodes.log import EpisodeFile
from brain_service.episodes.log_format import decode_line, encode_line
from brain_service.episodes.recovery import LogScan
from brain_service.episodes.schema import Step, StepIn, check_step, nest
from brain_service.errors import ConflictError, InvalidError, TooLargeError, UnavailableError
from brain_service.settings import CaptureSettings
from brain_service.spec import EpisodeSpec, check_values, flatten

__all__ = ["Appended", "EndReason", "Ended", "EpisodeWriter"]

EndReason = Literal["terminated", "truncated", "recovered"]


@dataclass(frozen=True, slots=True)
class Appended:
    """Answer to an append: index of its last step, highest index on the medium (-1: none), steps it held."""

    step_index: int
    durable_through: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Answer to an end: how many steps the episode has, the highest index on the medium, and how it ended."""

    steps: int
    durable_through: int
    reason: str


class EpisodeWriter:
    """The one writer of an open episode. Every method may be called from any thread but an event loop's."""

    def __init__(self, file: EpisodeFile, found: LogScan, settings: CaptureSettings, flusher: Flusher) -> None:
        self.header = found.header
        self.spec: EpisodeSpec | None = found.spec
        self.durable_through = len(found.offsets) - 1
        self.last_used_s = time.monotonic()
        self.ended: Ended | None = None
        self._file = file
        self._offsets = found.offsets
        self._terminal = found.last_is_terminal
        self._settings = settings
        self._durability: Durability = found.header.durability or settings.durability
        self._flusher = flusher
        self._lock = threading.Lock()
        self._synced = threading.Condition()
        self._unsynced_since_s: float | None = None
        self._steps_end_bytes: int | None = None
        self._watchers: dict[object, tuple[asyncio.AbstractEventLoop, Callable[[int], None]]] = {}

    @classmethod
    def create(
        cls, path: Path, header: EpisodeHeader, settings: CaptureSettings, flusher: Flusher
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
        file = EpisodeFile.create(path, line)
        return cls(file, LogScan(header, len(line), header.features), settings, flusher)

    @property
    def steps(self) -> int:
        """Number of accepted steps, which is the next step index."""
        return len(self._offsets)

    @property
    def failed(self) -> str | None:
        """Why the log takes no more steps, or None."""
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
            UnavailableError: the disk is full or fails.
        """
        with self._lock:
            self._require_open()
            lines, spec = self._encode(bodies, batch)
            if lines:
                self._write(lines, spec, bodies[-1].is_terminal)
            last = self._first_index(bodies) + len(bodies) - 1
        if self._durability == "step":
            self._wait_durable(last)
        return Appended(last, self.durable_through, len(bodies))

    def end(self, reason: EndReason | None, final_observation: Mapping[str, Any] | None = None) -> Ended:
        """Write the end record and flush; None means terminated if the last step was terminal, else truncated.

        Raises:
            ConflictError: it has ended otherwise, or `truncated` contradicts a terminal last step.
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
            begin = self._offsets[start]
            return begin, self._line_end(stop - 1) - begin

    def sync(self) -> None:
        """Flush what is accepted so far; a failure is kept in `failed` for those who wait."""
        # In this order a step that arrives in between is counted as unflushed, never as flushed.
        self._unsynced_since_s = None
        steps = self.steps
        try:
            self._file.sync()
        except UnavailableError:
            with self._synced:
                self._synced.notify_all()
        else:
            self._note_durable(steps)

    def watch(self, loop: asyncio.AbstractEventLoop, callback: Callable[[int], None]) -> Callable[[], None]:
        """Have `callback(durable_through)` run on `loop` whenever more is on the medium; returns the undo."""
        key = object()
        self._watchers[key] = (loop, callback)

        def unwatch() -> None:
            self._watchers.pop(key, None)

        return unwatch

    def close(self) -> None:
        """Flush and release the log without ending it; a later store goes on at the next step index."""
        with self._lock:
            self.sync()
            self._file.close()

    def _end(self, reason: EndReason | None, final_observation: Mapping[str, Any] | None) -> Ended:
        if self.ended is not None:
            return require_same_end(self.header.episode_id, self.ended, reason)
        if self._terminal and reason == "truncated":
            raise ConflictError(
                f"step {self.steps - 1} of episode {self.header.episode_id!r} is terminal; end it as 'terminated'",
                field="reason",
            )
        reason = reason or ("terminated" if self._terminal else "truncated")
        self._steps_end_bytes = self._file.append(encode_line(self._end_record(reason, final_observation)))
        self._file.sync()
        self.ended = Ended(self.steps, self.steps - 1, reason)
        self._unsynced_since_s = None
        self._note_durable(self.steps)
        self._file.close()
        return self.ended

    def _require_open(self) -> None:
        if self.ended is not None:
            raise ConflictError(
                f"episode {self.header.episode_id!r} has ended as {self.ended.reason}; "
                "POST /episodes starts another",
                next_step_index=self.steps,
            )

    def _first_index(self, bodies: Sequence[StepIn]) -> int:
        given = bodies[0].index()
        return self.steps - len(bodies) if given is None else given

    def _encode(self, bodies: Sequence[StepIn], batch: bool) -> tuple[list[bytes], EpisodeSpec | None]:
        """Check every step and return the lines of the new ones, with the spec they follow."""
        if not bodies:
            raise InvalidError("no steps were given; send at least one", field="steps")
        lines: list[bytes] = []
        spec = self.spec
        given = bodies[0].index()
        first = self.steps if given is None else given
        for place, body in enumerate(bodies):
            prefix = f"steps/{place}/" if batch else ""
            index = first + place
            if index > self.steps + len(lines) or body.index() not in (None, index) or index < 0:
                self._reject_gap(body.index(), self.steps if place == 0 else index, prefix)
            fixes_spec = spec is None
            step, spec = check_step(body, self.header, spec, index, prefix)
            if index < self.steps:
                self._require_same(step, body.time_ns() is None, prefix)
                continue
            if (self._terminal and not lines) or (lines and bodies[place - 1].is_terminal):
                raise ConflictError(
                    f"step {index - 1} is terminal, nothing can follow it: "
                    f"POST /episodes/{self.header.episode_id}/end",
                    field=f"{prefix}step_index",
                    next_step_index=self.steps,
                )
            lines.append(self._line(step, spec if fixes_spec else None, prefix))
        return lines, spec

    def _line(self, step: Step, fixed: EpisodeSpec | None, prefix: str) -> bytes:
        record = step.record(self.header.episode_id)
        if fixed is not None:
            record["features"] = fixed.to_json()
        try:
            line = encode_line(record)
        except InvalidError as error:
            raise InvalidError(error.detail, field=prefix.rstrip("/") or None) from error
        if len(line) > self._settings.max_step_bytes:
            raise TooLargeError(
                f"step {step.step_index} has {len(line)} bytes, the limit is {self._settings.max_step_bytes}",
                field=prefix.rstrip("/") or None,
            )
        return line

    def _write(self, lines: list[bytes], spec: EpisodeSpec | None, terminal: bool) -> None:
        free_bytes = self._file.free_bytes()
        if free_bytes < self._settings.min_free_bytes:
            raise UnavailableError(
                f"only {free_bytes} bytes are free, {self._settings.min_free_bytes} are kept in reserve: "
                "convert, upload or delete episodes"
            )
        offset = self._file.append(b"".join(lines))
        for line in lines:
            self._offsets.append(offset)
            offset += len(line)
        self.spec = spec
        self._terminal = terminal
        self.last_used_s = time.monotonic()
        if self._unsynced_since_s is None:
            self._unsynced_since_s = self.last_used_s
        if self._durability != "episode":
            self._flusher.note(self, urgent=self._durability == "step")

    def _reject_gap(self, given: int | None, expected: int, prefix: str) -> None:
        raise ConflictError(
            f"step_index {given} leaves a gap: {expected} was expected, the next step is {self.steps}",
            field=f"{prefix}step_index",
            next_step_index=self.steps,
        )

    def _require_same(self, step: Step, time_was_omitted: bool, prefix: str) -> None:
        stored = self._stored(step.step_index)
        stored.pop("features", None)
        again = orjson.loads(orjson.dumps(step.record(self.header.episode_id), option=orjson.OPT_SERIALIZE_NUMPY))
        if time_was_omitted:
            again["step_metadata"]["timestamp_ns"] = stored["step_metadata"]["timestamp_ns"]
        if again != stored:
            wrong = sorted(name for name in again.keys() | stored.keys() if again.get(name) != stored.get(name))
            raise ConflictError(
                f"step {step.step_index} is stored with another {', '.join(wrong)}; a retry must repeat its body",
                field=f"{prefix}{wrong[0]}",
                next_step_index=self.steps,
            )

    def _stored(self, index: int) -> dict[str, Any]:
        start = self._offsets[index]
        return decode_line(self._file.read(start, self._line_end(index) - start))

    def _line_end(self, index: int) -> int:
        if index + 1 < self.steps:
            return self._offsets[index + 1]
        return self._file.size_bytes if self._steps_end_bytes is None else self._steps_end_bytes

    def _end_record(self, reason: str, final_observation: Mapping[str, Any] | None) -> dict[str, Any]:
        record: dict[str, Any] = {
            "type": "end",
            "reason": reason,
            "steps": self.steps,
            "ended_ns": time.time_ns(),
            "episode_id": self.header.episode_id,
        }
        if final_observation is not None:
            if self.spec is None:
                raise InvalidError("an episode without steps has no final observation", field="final_observation")
            flat = flatten(final_observation, "final_observation")
            record["final_observation"] = nest(check_values(flat, self.spec.observation, "final_observation"))
        return record

    def _note_durable(self, steps: int) -> None:
        with self._synced:
            grew = steps - 1 > self.durable_through
            self.durable_through = max(self.durable_through, steps - 1)
            self._synced.notify_all()
        for loop, callback in list(self._watchers.values()) if grew else ():
            # A loop that has closed meanwhile listens no more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(callback, steps - 1)

    def _wait_durable(self, step_index: int) -> None:
        with self._synced:
            self._synced.wait_for(lambda: self.durable_through >= step_index or self.failed is not None)
        if self.durable_through < step_index:
            raise UnavailableError(f"step {step_index} was accepted but {self.failed}")


def require_same_end(episode_id: str, ended: Ended, reason: str | None) -> Ended:
    """Return the earlier end if `reason` repeats it (None always does).

    Raises:
        ConflictError: it ended for another reason.
    """
    if reason not in (None, ended.reason):
        raise ConflictError(f"episode {episode_id!r} has ended as {ended.reason}, not {reason}", field="reason")
    return ended
