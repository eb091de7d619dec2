"""The episodes that one client records: opened, resent, and brought home before it closes."""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from brain_service.client.endpoint import Endpoint
from brain_service.client.errors import ClientError, SpoolError, TimedOutError
from brain_service.client.outbox import Outbox
from brain_service.client.parts import Ended
from brain_service.client.recorder import BufferLimits, fill_outbox
from brain_service.client.sender import Sender, Transport
from brain_service.client.spool import Spool
from brain_service.client.spool_folder import waiting_spools
from brain_service.client.wire import JsonObject, to_json

__all__ = ["Fleet", "Resent"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resent:
    """What became of an episode that an earlier process left in the spool: `ended`, or `error` says why not.

    `ended.episode_ids` tells the episodes that hold its steps.
    """

    episode_id: str
    ended: Ended | None
    error: ClientError | None = None


class Fleet:
    """Senders and their tasks. Make and use it on the loop that runs them."""

    def __init__(self, endpoint: Endpoint, limits: BufferLimits, transport: Transport) -> None:
        self._endpoint = endpoint
        self._limits = limits
        self._transport = transport
        self._http: httpx.AsyncClient = endpoint.async_http()
        self._running: dict[Sender, asyncio.Task[None]] = {}

    def launch(self, create_body: JsonObject, outbox: Outbox, *, resumed: bool = False) -> Sender:
        """Start to send what the outbox holds and will hold."""
        sender = Sender(
            self._endpoint, self._http, create_body, outbox, transport=self._transport, resumed=resumed
        )
        task = asyncio.get_running_loop().create_task(self._run(sender))
        self._running[sender] = task
        task.add_done_callback(lambda _: self._running.pop(sender, None))
        return sender

    async def _run(self, sender: Sender) -> None:
        syncing = asyncio.create_task(self._keep_synced(sender.outbox))
        try:
            await sender.run()
        finally:
            syncing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await syncing

    async def _keep_synced(self, outbox: Outbox) -> None:
        interval_s = self._limits.spool_sync_interval_s
        if interval_s is None or outbox.spool is None:
            return
        try:
            while True:
                await asyncio.sleep(interval_s)
                if outbox.unsynced:
                    await asyncio.to_thread(outbox.sync)
        except SpoolError as error:
            log.error(
                "episode %s is spooled no further than step %d: %s",
                outbox.spool.episode_id,
                outbox.synced_through,
                error.detail,
            )

    async def resend(self, timeout_s: float | None) -> list[Resent]:
        """Bring home what earlier processes left in the spool, one episode after the other, and end each.

        Raises:
            SpoolError: no `spool_dir` was given.
        """
        root = self._limits.spool_dir
        if root is None:
            raise SpoolError("this client has no spool_dir; give it the one that the earlier client had")
        give_up_s = None if timeout_s is None else time.monotonic() + timeout_s
        found: list[Resent] = []
        for path in await asyncio.to_thread(waiting_spools, root):
            if path.name not in {sender.episode_ids[0] for sender in self._running}:
                left_s = None if give_up_s is None else max(0.0, give_up_s - time.monotonic())
                found += await self._resend(path, left_s)
        return found

    async def _resend(self, path: Path, timeout_s: float | None) -> list[Resent]:
        """Bring one home; nothing to tell where another client was faster."""
        try:
            spool = await asyncio.to_thread(Spool.resume, path, self._limits.max_spool_bytes)
        except SpoolError as error:
            return [Resent(path.name, None, error)]
        if spool is None:
            return []
        end_body = await asyncio.to_thread(spool.end_body)
        sender = self.launch(spool.create_body, fill_outbox(spool.create_body, self._limits, spool), resumed=True)
        problem: ClientError | None = None
        for body in (end_body or {}, {}):  # an end that the daemon refuses is no reason to leave the steps behind
            sender.finish(to_json(body))
            try:
                return [Resent(path.name, await sender.until_ended(timeout_s, "resending"))]
            except ClientError as error:
                problem = error
            if sender.refused_end is None:
                break
        await self._stop(sender)
        return [Resent(path.name, None, problem)]

    async def close(self, timeout_s: float) -> None:
        """Wait for what is on its way, then stop.

        Raises:
            TimedOutError: steps stood only in memory and are lost; with a spool they wait on disk instead.
        """
        waiting = [self._home(sender, timeout_s) for sender in list(self._running)]
        await asyncio.gather(*waiting)
        lost: list[str] = []
        for sender in list(self._running):
            await self._stop(sender)  # before the count: a thread may still record
            count = sender.outbox.next_index - 1 - sender.durable_through
            if count and sender.outbox.spool is None:
                lost.append(f"{count} steps of {sender.episode_id} ({sender.trouble or 'slow'})")
        await self._http.aclose()
        if lost:
            raise TimedOutError(
                f"the client closed after {timeout_s} s without: {'; '.join(lost)}. They are lost; "
                "a spool_dir would have kept them"
            )

    async def _home(self, sender: Sender, timeout_s: float) -> None:
        with contextlib.suppress(ClientError):
            last = sender.outbox.next_index - 1
            if sender.ending:
                await sender.until_ended(timeout_s, "close")
            else:
                log.warning("episode %s was not ended before its client closed", sender.episode_id)
                await sender.until(lambda: sender.durable_through >= last, timeout_s, "close")

    async def _stop(self, sender: Sender) -> None:
        task = self._running.get(sender)
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._limits.spool_sync_interval_s is not None and sender.outbox.unsynced:
            with contextlib.suppress(SpoolError):
                await asyncio.to_thread(sender.outbox.sync)
        sender.stop()
