"""`BrainClient`: what a robot controller imports. Calls wait for their answer; recording never does."""

import asyncio
import atexit
import logging
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, Unpack

from brain_service.client.acting_stream import InferStream
from brain_service.client.calls import episode_path, fetch_health, fetch_json, fetch_page, fetch_steps, run
from brain_service.client.endpoint import DEFAULT_URL, Endpoint
from brain_service.client.errors import ClientError
from brain_service.client.fields import EpisodeFields, EpisodeFilters, create_body
from brain_service.client.fleet import Fleet, Resent
from brain_service.client.recorder import (
    MAX_BUFFER_BYTES,
    MAX_SPOOL_BYTES,
    BufferLimits,
    EpisodeRecorder,
    open_outbox,
)
from brain_service.client.sender import Sender, Transport
from brain_service.client.sessions import Session, start_session
from brain_service.client.wire import JsonObject

__all__ = ["BrainClient"]

log = logging.getLogger(__name__)

T = TypeVar("T")
PAGE_STEPS = 1000
RESEND_TIMEOUT_S = 30.0
EXIT_TIMEOUT_S = 5.0


class _LoopThread:
    """An event loop in a thread of its own, for the senders of a sync client."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="brain-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns; an interrupt of this thread cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Raised again: an interrupt too must end what runs on the loop.
            future.cancel()
            raise

    def stop(self) -> None:
        """Stop the loop and its thread."""
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class BrainClient:
    """A daemon at `base_url`, or at a Unix socket `uds`. Thread-safe; as a context manager it closes itself.

    `token` goes into every request and into no log or repr. `timeout_s` bounds each wait for the network. Steps
    wait in at most `max_buffer_bytes` of memory an episode while the daemon is away; with a `spool_dir` they stand
    on disk too (at most `max_spool_bytes` an episode) and survive this process: `resend_spool` of the next client
    brings them home. Every `spool_sync_interval_s` they are flushed to that medium, off the caller's thread, and
    then survive a power cut of this computer (None: whenever the kernel does it). `transport` is `stream` (a
    WebSocket; where there is none, POST) or `post`.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        uds: str | Path | None = None,
        token: str | None = None,
        timeout_s: float = 10.0,
        max_buffer_bytes: int = MAX_BUFFER_BYTES,
        spool_dir: str | Path | None = None,
        max_spool_bytes: int = MAX_SPOOL_BYTES,
        spool_sync_interval_s: float | None = None,
        transport: Transport = "stream",
    ) -> None:
        self._endpoint = Endpoint(base_url, None if uds is None else Path(uds), token, timeout_s)
        spool = None if spool_dir is None else Path(spool_dir)
        self._limits = BufferLimits(max_buffer_bytes, spool, max_spool_bytes, spool_sync_interval_s)
        self._transport: Transport = transport
        self._http = self._endpoint.http()
        self._lock = threading.Lock()
        self._background: tuple[_LoopThread, Fleet] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<BrainClient {self._endpoint.uds or self._endpoint.base_url}>"

    def record(self, **fields: Unpack[EpisodeFields]) -> EpisodeRecorder:
        """Begin an episode and return its recorder; the daemon may be away, then it is created later.

        Use it as a context manager: leaving the block ends the episode and waits until it is durable.

        Raises:
            SpoolError: the spool's folder cannot be made.
            EncodeError: a field has no JSON form.
            ClientError: the client is closed.
        """
        body = create_body(fields)
        outbox = open_outbox(body, self._limits)
        loop, fleet = self._start()

        async def launch() -> Sender:
            return fleet.launch(body, outbox)

        return EpisodeRecorder(outbox, loop.run(launch()), loop)

    def resend_spool(self, timeout_s: float | None = RESEND_TIMEOUT_S) -> list[Resent]:
        """Bring home what earlier processes left in `spool_dir` and end those episodes, as they had asked for.

        `timeout_s` bounds the wait for all; what did not make it stays for another time. Episodes of living
        processes are reported with a `SpoolError` and left alone; what the daemon refuses for good is renamed to
        `<id>.rejected`.

        Raises:
            SpoolError: the client has no `spool_dir`.
        """
        loop, fleet = self._start()
        return loop.run(fleet.resend(timeout_s))

    def start_session(self, *, transport: Transport = "post") -> Session:
        """Start to drive: a session at the zero state of the active model.

        With `transport="stream"` its actions come over a WebSocket of its own, which costs less an action; use
        such a session from one thread at a time.

        Raises:
            BusyError: no model is ready, or too many sessions are live.
            ClientError: as the daemon answers.
        """
        turns = run(self._http, start_session())
        return Session(InferStream(self._http, self._endpoint) if transport == "stream" else self._http, turns)

    def health(self) -> JsonObject:
        """Return the daemon's `/health` document: `status` is pass, warn or fail, `checks` tells why.

        Raises:
            ClientError: no answer.
        """
        return run(self._http, fetch_health())

    def episodes(self, *, page_size: int = 100, **filters: Unpack[EpisodeFilters]) -> Iterator[JsonObject]:
        """Iterate over the summaries of all episodes that pass the filters, newest first.

        Raises:
            ClientError: as the daemon answers, while iterating.
        """
        cursor: str | None = None
        while True:
            page, cursor = run(self._http, fetch_page(dict(filters), page_size, cursor))
            yield from page
            if cursor is None:
                return

    def episode(self, episode_id: str) -> JsonObject:
        """Return the summary of one episode.

        Raises:
            NotFoundError: no such episode.
            ClientError: as the daemon answers.
        """
        return run(self._http, fetch_json(episode_path(episode_id)))

    def steps(self, episode_id: str, start: int = 0) -> Iterator[JsonObject]:
        """Iterate over the step records of an episode from index `start`, observations and actions as arrays.

        These have the features' shapes; fractions are float32, whole numbers int64.

        Raises:
            ClientError: as the daemon answers, while iterating.
        """
        # A page of long steps is shorter than asked for: only one without any is the end.
        while page := run(self._http, fetch_steps(episode_id, start, PAGE_STEPS)):
            yield from page
            start += len(page)

    def close(self, timeout_s: float = 10.0) -> None:
        """Wait at most `timeout_s` for steps on their way, then let go of every connection.

        Raises:
            TimedOutError: steps stood only in memory and are lost; it says how many.
        """
        atexit.unregister(self._close_at_exit)
        with self._lock:
            background, self._background, self._closed = self._background, None, True
        self._http.close()
        if background is None:
            return
        loop, fleet = background
        try:
            loop.run(fleet.close(timeout_s))
        finally:
            loop.stop()

    def __enter__(self) -> "BrainClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> tuple[_LoopThread, Fleet]:
        with self._lock:
            if self._closed:
                raise ClientError("this client is closed; make another one")
            if self._background is None:
                loop = _LoopThread()
                atexit.register(self._close_at_exit)
                self._background = loop, loop.run(self._open_fleet())
            return self._background

    def _close_at_exit(self) -> None:
        """Bring home what a program leaves behind that ends without closing its client."""
        try:
            self.close(EXIT_TIMEOUT_S)
        except ClientError as error:
            log.error("%s", error.detail)

    async def _open_fleet(self) -> Fleet:
        return Fleet(self._endpoint, self._limits, self._transport)
