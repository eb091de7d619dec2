"""Recording: `log_step` takes a step and returns at once; a background sender brings it to the daemon."""

import asyncio
import secrets
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, TypeVar

from brain_service.client.errors import BufferFullError, ClientError, EndedError, ProblemError
from brain_service.client.outbox import Outbox
from brain_service.client.parts import Ended
from brain_service.client.sender import Sender
from brain_service.client.spool import Spool
from brain_service.client.wire import JsonObject, encode_step, to_json

__all__ = ["AsyncEpisodeRecorder", "BufferLimits", "EpisodeRecorder", "Reason", "new_episode_id"]

T = TypeVar("T")
Reason = Literal["terminated", "truncated"]

MAX_BUFFER_BYTES = 64 * 1024**2
MAX_SPOOL_BYTES = 1024**3
END_TIMEOUT_S = 30.0
FLUSH_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class BufferLimits:
    """Bounds of the offline buffer: bytes in memory, and with a `spool_dir` bytes an episode on disk.

    What is on disk is flushed to its medium every `spool_sync_interval_s` seconds; None: whenever the kernel does.
    """

    max_buffer_bytes: int = MAX_BUFFER_BYTES
    spool_dir: Path | None = None
    max_spool_bytes: int = MAX_SPOOL_BYTES
    spool_sync_interval_s: float | None = None

    def __post_init__(self) -> None:
        """Check the interval.

        Raises:
            ValueError: it is not positive.
        """
        if self.spool_sync_interval_s is not None and not self.spool_sync_interval_s > 0:
            raise ValueError(f"spool_sync_interval_s is {self.spool_sync_interval_s}; give seconds > 0, or None")


def new_episode_id() -> str:
    """Return an id that sorts by creation second (UTC): made here, so that creating it twice is harmless."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(6)}"


def open_outbox(create_body: JsonObject, limits: BufferLimits) -> Outbox:
    """Return the empty outbox of a new episode.

    Raises:
        SpoolError: the spool's folder cannot be made.
        EncodeError: the body has no JSON form.
    """
    spool = None
    if limits.spool_dir is not None:
        spool = Spool.create(limits.spool_dir, create_body, limits.max_spool_bytes)
    return fill_outbox(create_body, limits, spool)


def fill_outbox(create_body: JsonObject, limits: BufferLimits, spool: Spool | None) -> Outbox:
    """Return the outbox of an episode, with what its spool holds."""
    return Outbox(limits.max_buffer_bytes, spool, forgetful=create_body.get("durability") == "episode")


class _Recorder:
    """What both recorders share: everything that does not wait."""

    def __init__(self, outbox: Outbox, sender: Sender) -> None:
        self._outbox = outbox
        self._sender = sender
        self._ending = False

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.episode_id}: {self._outbox.next_index} steps, "
            f"accepted through {self.accepted_through}, durable through {self.durable_through}>"
        )

    @property
    def episode_id(self) -> str:
        """The id of the episode that takes steps now, at the daemon too.

        It changes where the daemon closed the episode as `recovered` while it was out of reach: the recording then
        goes on in another, which names this one under `continues` in its metadata. Indices here go on too: those
        of `log_step`, `accepted_through` and `durable_through` count the recording's steps, from its first.
        """
        return self._sender.episode_ids[-1]

    @property
    def earlier_episode_ids(self) -> tuple[str, ...]:
        """The ids of the episodes that the daemon closed amid the recording, oldest first; mostly none."""
        return self._sender.episode_ids[:-1]

    @property
    def accepted_through(self) -> int:
        """Highest step index that a kill of the daemon no longer loses; -1: none."""
        return self._sender.accepted_through

    @property
    def durable_through(self) -> int:
        """Highest step index that a power cut no longer loses; -1: none."""
        return self._sender.durable_through

    @property
    def spooled_through(self) -> int:
        """Highest step index that a power cut of this computer no longer loses; -1: none.

        Those up to `durable_through` are at the daemon; with `spool_sync_interval_s` the others are in the spool.
        """
        return max(self._outbox.synced_through, self._sender.durable_through)

    @property
    def pending(self) -> int:
        """How many steps are not durable yet, and so are kept here."""
        return self._outbox.next_index - 1 - self._sender.durable_through

    @property
    def buffered_bytes(self) -> int:
        """Memory that the pending steps take, in bytes."""
        return self._outbox.memory_bytes

    @property
    def trouble(self) -> ClientError | None:
        """What went wrong last and may pass: the daemon is away, busy or full. None while steps go through."""
        return self._sender.trouble

    def log_step(
        self,
        observation: Mapping[str, Any],
        action: Mapping[str, Any],
        reward: float = 0.0,
        is_terminal: bool = False,
        timestamp_ns: int | None = None,
        *,
        control_role: str | None = None,
        executed_action: Mapping[str, Any] | None = None,
        policy: Mapping[str, Any] | None = None,
    ) -> int:
        """Take one step and return its index; never waits for the network.

        Observation and action are flat or nested maps of named arrays, numbers, truth values, text or encoded
        images; they are copied. `reward` is what followed the action, `timestamp_ns` (int64 ns, default: now)
        when the observation was made. With a `spool_dir` the step survives this process from here on.

        Raises:
            BufferFullError: the daemon was away for too long; the step was not taken.
            EncodeError: a value cannot be sent; the step was not taken.
            EndedError: `end` was called before.
            SpoolError: the disk refuses; the step was not taken.
            ProblemError: the daemon has refused an earlier step (or the episode) for good; its problem document
                tells the field and the reason, and nothing more can be recorded here.
        """
        sender = self._sender
        if sender.failure is not None:
            raise sender.failure
        if self._ending:
            raise EndedError(f"episode {self.episode_id} has ended here; client.record() starts another")
        time_ns = time.time_ns() if timestamp_ns is None else timestamp_ns
        extra = {"control_role": control_role, "executed_action": executed_action, "policy": policy}
        step: JsonObject = {
            "step_index": 0,
            "observation": observation,
            "action": action,
            "reward": reward,
            "is_terminal": is_terminal,
            "timestamp_ns": time_ns,
            **{name: value for name, value in extra.items() if value is not None},
        }

        def encode(index: int) -> bytes:
            step["step_index"] = index
            return encode_step(step)

        try:
            index = self._outbox.put(encode)
        except BufferFullError as error:
            raise self._explained(error) from error
        sender.wake()
        return index

    def _explained(self, error: BufferFullError) -> BufferFullError:
        trouble = self._sender.trouble
        return BufferFullError(error.detail + ("" if trouble is None else f"; the daemon: {trouble.detail}"))

    def _ask_end(self, reason: Reason | None, final_observation: Mapping[str, Any] | None) -> bytes:
        """Return the body of `/end`, kept on disk too where steps are."""
        given = {"reason": reason, "final_observation": final_observation}
        body = to_json({name: value for name, value in given.items() if value is not None})
        if self._outbox.spool is not None and self._sender.ended is None and self._sender.failure is None:
            self._outbox.spool.keep_end(body)
        self._ending = True
        return body

    async def _flush(self, timeout_s: float | None, durable: bool) -> None:
        if durable and self._outbox.forgetful:
            raise ClientError(
                "with durability 'episode' nothing is durable before the end: call end(), or flush(durable=False)"
            )
        last = self._outbox.next_index - 1
        sender = self._sender
        what = f"flush ({'durable' if durable else 'accepted'})"
        if durable:
            await sender.until(lambda: sender.durable_through >= last, timeout_s, what)
        else:
            await sender.until(lambda: sender.accepted_through >= last, timeout_s, what)

    async def _end(self, body: bytes, timeout_s: float | None) -> Ended:
        if self._sender.ended is None:
            self._sender.finish(body)
        try:
            return await self._sender.until_ended(timeout_s, "end")
        except ProblemError:
            self._ending = self._sender.failure is not None
            raise


class LoopRunner(Protocol):
    """Runs coroutines on the client's background loop and waits for them."""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns."""


class EpisodeRecorder(_Recorder):
    """One episode being recorded by a `BrainClient`; as a context manager it ends itself.

    `log_step` may be called from any thread.
    """

    def __init__(self, outbox: Outbox, sender: Sender, loop: LoopRunner) -> None:
        super().__init__(outbox, sender)
        self._loop = loop

    def flush(self, timeout_s: float | None = FLUSH_TIMEOUT_S, *, durable: bool = True) -> None:
        """Wait until every step so far is durable (or, with `durable=False`, accepted).

        Raises:
            TimedOutError: not within `timeout_s` seconds; the sender goes on.
            ClientError: the daemon has refused for good.
        """
        self._loop.run(self._flush(timeout_s, durable))

    def end(
        self,
        reason: Reason | None = None,
        final_observation: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = END_TIMEOUT_S,
    ) -> Ended:
        """End the episode and wait until all of it is durable; the same again gives the same answer.

        Without a reason it is `terminated` if the last step is terminal, else `truncated`. `final_observation` is
        what was seen after the last action.

        Raises:
            TimedOutError: not within `timeout_s` seconds; the sender goes on while the client lives.
            ProblemError: the reason or the final observation is wrong; `end` may be called with another.
            LostStepsError: the daemon has fewer steps than were recorded, and they cannot be resent.
            ClientError: the daemon has refused for good.
        """
        return self._loop.run(self._end(self._ask_end(reason, final_observation), timeout_s))

    def __enter__(self) -> "EpisodeRecorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            if not self._ending:
                self.end()
        elif not self._ending and self._sender.failure is None:
            # The block's own error goes on; what was recorded before it is still brought home.
            self._sender_finish(self._ask_end(None, None))

    def _sender_finish(self, body: bytes) -> None:
        async def finish() -> None:
            self._sender.finish(body)

        self._loop.run(finish())


class AsyncEpisodeRecorder(_Recorder):
    """One episode being recorded by an `AsyncBrainClient`; as an async context manager it ends itself.

    `log_step` is a plain call: it never waits for the network (with a `spool_dir` it writes to the page cache).
    """

    async def flush(self, timeout_s: float | None = FLUSH_TIMEOUT_S, *, durable: bool = True) -> None:
        """Wait until every step so far is durable (or, with `durable=False`, accepted).

        Raises:
            ClientError: as `EpisodeRecorder.flush`.
        """
        await self._flush(timeout_s, durable)

    async def end(
        self,
        reason: Reason | None = None,
        final_observation: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = END_TIMEOUT_S,
    ) -> Ended:
        """End the episode and wait until all of it is durable; the same again gives the same answer.

        Raises:
            ClientError: as `EpisodeRecorder.end`.
        """
        body = await asyncio.to_thread(self._ask_end, reason, final_observation)
        return await self._end(body, timeout_s)

    async def __aenter__(self) -> "AsyncEpisodeRecorder":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            if not self._ending:
                await self.end()
        elif not self._ending and self._sender.failure is None:
            self._sender.finish(await asyncio.to_thread(self._ask_end, None, None))
