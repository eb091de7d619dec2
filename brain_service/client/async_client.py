"""`AsyncBrainClient`: the same for a controller that lives on an event loop; no thread of its own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Unpack

from brain_service.client.acting_stream import AsyncInferStream
from brain_service.client.calls import episode_path, fetch_health, fetch_json, fetch_page, fetch_steps, run_async
from brain_service.client.endpoint import DEFAULT_URL, Endpoint
from brain_service.client.errors import ClientError
from brain_service.client.fields import EpisodeFields, EpisodeFilters, create_body
from brain_service.client.fleet import Fleet, Resent
from brain_service.client.recorder import (
    MAX_BUFFER_BYTES,
    MAX_SPOOL_BYTES,
    AsyncEpisodeRecorder,
    BufferLimits,
    open_outbox,
)
from brain_service.client.sender import Transport
from brain_service.client.sessions import AsyncSession, start_session
from brain_service.client.wire import JsonObject

__all__ = ["AsyncBrainClient"]

PAGE_STEPS = 1000
RESEND_TIMEOUT_S = 30.0


class AsyncBrainClient:
    """A daemon at `base_url`, or at a Unix socket `uds`; the parameters are those of `BrainClient`.

    Use it on one event loop; as an async context manager it closes itself.
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
        self._http = self._endpoint.async_http()
        self._fleet: Fleet | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<AsyncBrainClient {self._endpoint.uds or self._endpoint.base_url}>"

    @contextlib.asynccontextmanager
    async def record(self, **fields: Unpack[EpisodeFields]) -> AsyncIterator[AsyncEpisodeRecorder]:
        """Record an episode for a block; leaving it ends the episode and waits until it is durable.

        Raises:
            ClientError: as `BrainClient.record` and `EpisodeRecorder.end`.
        """
        async with await self.start_recording(**fields) as recorder:
            yield recorder

    async def start_recording(self, **fields: Unpack[EpisodeFields]) -> AsyncEpisodeRecorder:
        """Begin an episode and return its recorder; call its `end` yourself.

        Raises:
            ClientError: as `BrainClient.record`.
        """
        body = create_body(fields)
        outbox = await asyncio.to_thread(open_outbox, body, self._limits)
        return AsyncEpisodeRecorder(outbox, self._start().launch(body, outbox))

    async def resend_spool(self, timeout_s: float | None = RESEND_TIMEOUT_S) -> list[Resent]:
        """Bring home what earlier processes left in `spool_dir`, as `BrainClient.resend_spool`.

        Raises:
            SpoolError: the client has no `spool_dir`.
        """
        return await self._start().resend(timeout_s)

    async def start_session(self, *, transport: Transport = "post") -> AsyncSession:
        """Start to drive: a session at the zero state of the active model, as `BrainClient.start_session`.

        Raises:
            ClientError: as `BrainClient.start_session`.
        """
        turns = await run_async(self._http, start_session())
        return AsyncSession(
            AsyncInferStream(self._http, self._endpoint) if transport == "stream" else self._http, turns
        )

    async def health(self) -> JsonObject:
        """Return the daemon's `/health` document.

        Raises:
            ClientError: no answer.
        """
        return await run_async(self._http, fetch_health())

    async def episodes(
        self, *, page_size: int = 100, **filters: Unpack[EpisodeFilters]
    ) -> AsyncIterator[JsonObject]:
        """Iterate over the summaries of all episodes that pass the filters, newest first.

        Raises:
            ClientError: as the daemon answers, while iterating.
        """
        cursor: str | None = None
        while True:
            page, cursor = await run_async(self._http, fetch_page(dict(filters), page_size, cursor))
            for summary in page:
                yield summary
            if cursor is None:
                return

    async def episode(self, episode_id: str) -> JsonObject:
        """Return the summary of one episode.

        Raises:
            NotFoundError: no such episode.
            ClientError: as the daemon answers.
        """
        return await run_async(self._http, fetch_json(episode_path(episode_id)))

    async def steps(self, episode_id: str, start: int = 0) -> AsyncIterator[JsonObject]:
        """Iterate over the step records of an episode from index `start`, observations and actions as arrays.

        These have the features' shapes; fractions are float32, whole numbers int64.

        Raises:
            ClientError: as the daemon answers, while iterating.
        """
        while page := await run_async(self._http, fetch_steps(episode_id, start, PAGE_STEPS)):
            for record in page:
                yield record
            start += len(page)

    async def close(self, timeout_s: float = 10.0) -> None:
        """Wait at most `timeout_s` for steps on their way, then let go of every connection.

        Raises:
            TimedOutError: steps stood only in memory and are lost; it says how many.
        """
        fleet, self._fleet, self._closed = self._fleet, None, True
        await self._http.aclose()
        if fleet is not None:
            await fleet.close(timeout_s)

    async def __aenter__(self) -> "AsyncBrainClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _start(self) -> Fleet:
        if self._closed:
            raise ClientError("this client is closed; make another one")
        if self._fleet is None:
            self._fleet = Fleet(self._endpoint, self._limits, self._transport)
        return self._fleet
