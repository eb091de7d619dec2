"""From posted steps to log lines: order, retries, limits, and the short way for what is usual."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import orjson

from brain_service.episodes.codec import StepCodec
from brain_service.episodes.header import EpisodeHeader
from brain_service.episodes.images import ImageStore
from brain_service.episodes.log_format import encode_line
from brain_service.episodes.schema import Step, StepIn, check_step
from brain_service.episodes.wire import BodyKind, Piece, is_one_step, parse_step, plain_bytes, split_steps
from brain_service.errors import ConflictError, InvalidError, TooLargeError
from brain_service.settings import CaptureSettings
from brain_service.spec import EpisodeSpec

__all__ = ["NewLines", "StepLines", "Tail"]

# How many steps are read before the next look at what else waits for the interpreter.
_CHUNK = 64
_JUDGED_CHUNK = 16
# JSON may be written with more digits and spaces than the log's line.
_TEXT_PER_LINE = 2


class Tail(msgspec.Struct, frozen=True):
    """What the next step follows: the steps before it, their spec (None: it fixes it), whether they are all."""

    steps: int
    spec: EpisodeSpec | None
    is_terminal: bool


class NewLines(msgspec.Struct, frozen=True):
    """The lines of one request's new steps, and the tail behind them. `last_index` is that of its last step.

    `images` are those that the lines refer to, by reference; they are to be stored before the lines.
    """

    lines: Sequence[bytes]
    tail: Tail
    last_index: int
    accepted: int
    images: Mapping[str, bytes] = msgspec.field(default_factory=dict)


class StepLines:
    """Encodes the steps of one episode. For one thread at a time.

    `stored` returns the record of a step in the log by its index, for retries to be held against.
    """

    def __init__(
        self,
        header: EpisodeHeader,
        settings: CaptureSettings,
        stored: Callable[[int], dict[str, Any]],
        images: ImageStore,
    ) -> None:
        self._header = header
        self._settings = settings
        self._stored = stored
        self._images = images
        self._codec: StepCodec | None = None
        self._codec_spec: EpisodeSpec | None = None

    def quick(self, body: bytes, kind: BodyKind, tail: Tail, considerate: bool) -> NewLines | None:
        """Take the short way with a body whose steps are all new; None if it needs `judged`.

        `considerate` lets other threads have the interpreter now and then.

        Raises:
            MalformedError: the body is no JSON or msgpack.
            InvalidError: a large array holds something that is no object.
            TooLargeError: the body or its number of steps is over its limit.
        """
        self._require_size(body)
        if tail.spec is None or tail.is_terminal:
            return None
        codec = self._codec_for(tail.spec)
        if codec is None:
            return None
        pieces: Sequence[Piece] = (body,)
        if not is_one_step(body, kind):
            pieces, _ = split_steps(body, kind, self._settings.max_batch_steps)
            if not pieces:
                return None
        lines: list[bytes] = []
        is_terminal = False
        for start in range(0, len(pieces), _CHUNK):
            taken = codec.take(pieces[start : start + _CHUNK], kind)
            found = None if taken is None or is_terminal else codec.lines(taken, tail.steps + start)
            if taken is None or found is None:
                return None
            is_terminal = taken.is_terminal
            lines += found
            if considerate:
                time.sleep(0)
        return self._new_lines(lines, tail, is_terminal)

    def quick_each(self, bodies: Sequence[bytes], kind: BodyKind, tail: Tail) -> list[NewLines] | None:
        """Take the short way with small bodies of one new step each, all at once; None if that takes more care."""
        if tail.spec is None or tail.is_terminal or not all(is_one_step(body, kind) for body in bodies):
            return None
        if max(map(len, bodies)) > self._settings.max_body_bytes:
            return None
        codec = self._codec_for(tail.spec)
        taken = None if codec is None else codec.take(bodies, kind)
        lines = None if codec is None or taken is None else codec.lines(taken, tail.steps)
        if taken is None or lines is None or max(map(len, lines)) > self._settings.max_step_bytes:
            return None
        last = tail.steps + len(lines)
        return [
            NewLines((line,), Tail(n, tail.spec, n == last and taken.is_terminal), n - 1, 1)
            for n, line in enumerate(lines, start=tail.steps + 1)
        ]

    def quick_arrays(self, step: StepIn, tail: Tail) -> NewLines | None:
        """Take the short way with a new step given as arrays; None if it needs `general`."""
        if tail.spec is None or tail.is_terminal:
            return None
        codec = self._codec_for(tail.spec)
        taken = None if codec is None else codec.take_arrays(step)
        lines = None if codec is None or taken is None else codec.lines(taken, tail.steps)
        return None if lines is None else self._new_lines(lines, tail, step.is_terminal)

    def judged(self, body: bytes, kind: BodyKind, tail: Tail, considerate: bool) -> NewLines:
        """Check the steps of a body one by one, as `general` does.

        Raises:
            MalformedError: the body is no JSON or msgpack.
            BrainError: as `general`.
        """
        self._require_size(body)
        pieces, batch = split_steps(body, kind, self._settings.max_batch_steps)
        steps = (self._parse(piece, kind, f"steps/{place}" if batch else "") for place, piece in enumerate(pieces))
        return self.general(steps, len(pieces), tail, batch=batch, considerate=considerate)

    def general(
        self, bodies: Iterable[StepIn], count: int, tail: Tail, *, batch: bool, considerate: bool = False
    ) -> NewLines:
        """Check `count` steps one by one; what is stored already must equal what is stored.

        `batch` puts `steps/<n>/` before the field names in errors.

        Raises:
            InvalidError: a step is wrong, or there is none.
            ConflictError: a gap (with `next_step_index`), another body under a stored index, or a step behind
                a terminal one.
            TooLargeError: a step is over `max_step_bytes`.
            UnavailableError: the medium cannot read what is stored.
        """
        if not count:
            raise InvalidError("no steps were given; send at least one", field="steps")
        lines: list[bytes] = []
        images: dict[str, bytes] = {}
        spec, is_terminal = tail.spec, tail.is_terminal
        first = 0
        for place, body in enumerate(bodies):
            prefix = f"steps/{place}/" if batch else ""
            given = body.index()
            if place == 0:
                first = tail.steps if given is None else given
            index = first + place
            if index > tail.steps + len(lines) or given not in (None, index) or index < 0:
                self._reject_gap(given, tail.steps if place == 0 else index, tail.steps, prefix)
            fixes_spec = spec is None
            step, spec = check_step(body, self._header, spec, index, prefix)
            step, found = self._name_images(step, spec, prefix, images)
            if index < tail.steps:
                self._require_same(step, body.time_ns() is None, tail.steps, prefix)
                continue
            if is_terminal:
                raise ConflictError(
                    f"step {index - 1} is terminal, nothing can follow it: "
                    f"POST /episodes/{self._header.episode_id}/end",
                    field=f"{prefix}step_index",
                    next_step_index=tail.steps,
                )
            lines.append(self._line(step, spec if fixes_spec else None, prefix))
            images |= found
            is_terminal = step.is_terminal
            if considerate and place % _JUDGED_CHUNK == 0:
                time.sleep(0)
        following = Tail(tail.steps + len(lines), spec, is_terminal)
        return NewLines(lines, following, first + count - 1, count, images)

    def _new_lines(self, lines: Sequence[bytes], tail: Tail, is_terminal: bool) -> NewLines | None:
        if max(map(len, lines)) > self._settings.max_step_bytes:
            return None
        steps = tail.steps + len(lines)
        return NewLines(lines, Tail(steps, tail.spec, is_terminal), steps - 1, len(lines))

    def _parse(self, piece: Piece, kind: BodyKind, prefix: str) -> StepIn:
        """Parse one step, unless it alone is far longer than its line may be: that would take long."""
        limit = self._settings.max_step_bytes
        if kind == "msgpack":
            # The shortest number of an array has one byte, and two in its line.
            limit //= 2
            size_bytes = plain_bytes(piece, limit)
        else:
            limit *= _TEXT_PER_LINE
            size_bytes = memoryview(piece).nbytes
        if size_bytes > limit:
            what = "msgpack outside binary values" if kind == "msgpack" else "JSON"
            raise TooLargeError(
                f"a step has {size_bytes} bytes of {what}, the limit is {limit}", field=prefix or None
            )
        return parse_step(piece, kind, prefix)

    def _require_size(self, body: bytes) -> None:
        limit = self._settings.max_body_bytes
        if len(body) > limit:
            raise TooLargeError(f"the body has {len(body)} bytes, the limit is {limit}; split it")

    def _codec_for(self, spec: EpisodeSpec) -> StepCodec | None:
        if self._codec_spec is not spec:
            self._codec, self._codec_spec = StepCodec.of(self._header, spec), spec
        return self._codec

    def _name_images(
        self, step: Step, spec: EpisodeSpec, prefix: str, staged: Mapping[str, bytes]
    ) -> tuple[Step, dict[str, bytes]]:
        if not spec.image_paths:
            return step, {}
        limit_bytes = self._settings.max_image_bytes
        named, found = self._images.name_images(
            step.observation, spec, f"{prefix}observation", limit_bytes, staged
        )
        return replace(step, observation=named), found

    def _line(self, step: Step, fixed: EpisodeSpec | None, prefix: str) -> bytes:
        record = step.record(self._header.episode_id)
        if fixed is not None:
            record["features"] = fixed.to_json()
        try:
            line = encode_line(record)
        except InvalidError as error:
            field = f"{prefix}{error.field or ''}".rstrip("/") or None
            raise InvalidError(f"{prefix if error.field else ''}{error.detail}", field=field) from error
        if len(line) > self._settings.max_step_bytes:
            raise TooLargeError(
                f"step {step.step_index} has {len(line)} bytes, the limit is {self._settings.max_step_bytes}",
                field=prefix.rstrip("/") or None,
            )
        return line

    def _reject_gap(self, given: int | None, expected: int, following: int, prefix: str) -> None:
        raise ConflictError(
            f"step_index {given} leaves a gap: {expected} was expected, the next step is {following}",
            field=f"{prefix}step_index",
            next_step_index=following,
        )

    def _require_same(self, step: Step, time_was_omitted: bool, following: int, prefix: str) -> None:
        stored = self._stored(step.step_index)
        stored.pop("features", None)
        again = orjson.loads(orjson.dumps(step.record(self._header.episode_id), option=orjson.OPT_SERIALIZE_NUMPY))
        if time_was_omitted:
            again["step_metadata"]["timestamp_ns"] = stored["step_metadata"]["timestamp_ns"]
        wrong = sorted(
            name for name in again.keys() | stored.keys() if _text(again.get(name)) != _text(stored.get(name))
        )
        if wrong:
            raise ConflictError(
                f"step {step.step_index} is stored with another {', '.join(wrong)}; a retry must repeat its body",
                field=f"{prefix}{wrong[0]}",
                next_step_index=following,
            )


def _text(value: Any) -> bytes:
    """Return a value as one text: to Python 0.0 equals -0.0, and 1 equals true."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
