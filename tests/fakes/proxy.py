"""A TCP proxy between a client and the daemon: real bytes, real sockets, and the network's bad days on request."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

Pair = tuple[asyncio.StreamWriter, asyncio.StreamWriter]

BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%s"
)


class Proxy:
    """Listens on `port` of the loopback interface and forwards to `target_port`; every method is thread-safe.

    `delay_s` is added before each piece of the daemon's answers. `swallow` lets what the client sends through and
    loses what the daemon answers. `refuse` closes every new connection at once. `busy` answers the next so many
    connections with 503 itself. `no_upgrade` answers WebSocket handshakes as an HTTP-only proxy does.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.delay_s = 0.0
        self.swallow = False
        self.refuse = False
        self.busy = 0
        self.no_upgrade = False
        self.busy_body = b'{"type":"about:blank","title":"Busy","status":503,"detail":"later","retry_after_s":0.2}'
        self.connections = 0
        self._pairs: set[Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def start(self) -> "Proxy":
        """Listen."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(5)
        return self

    def drop(self) -> None:
        """Cut every connection with a reset, in the middle of whatever it carries."""
        self._loop.call_soon_threadsafe(self._drop)

    def stop(self) -> None:
        """Stop listening and cut every connection."""
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        self._server.close()
        self._drop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _drop(self) -> None:
        for pair in list(self._pairs):
            for writer in pair:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        try:
            await self._pass_on(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            return
        if self.busy > 0:
            self.busy -= 1
            await reader.read(65536)
            writer.write(BUSY % (len(self.busy_body), self.busy_body))
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            return
        first = await reader.read(65536)
        if self.no_upgrade and b"upgrade: websocket" in first.lower():
            writer.write(b"HTTP/1.1 426 Upgrade Required\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self.target_port)
        back.write(first)
        pair = (writer, back)
        self._pairs.add(pair)
        answers = asyncio.create_task(self._answers(there, writer))
        try:
            while piece := await reader.read(65536):
                back.write(piece)
                await back.drain()
        finally:
            answers.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await answers
            self._pairs.discard(pair)
            back.transport.abort()

    async def _answers(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await there.read(65536):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if not self.swallow:
                writer.write(piece)
                await writer.drain()
        writer.transport.abort()


@contextlib.contextmanager
def running_proxy(target_port: int) -> Iterator[Proxy]:
    """Run a proxy for a block."""
    proxy = Proxy(target_port).start()
    try:
        yield proxy
    finally:
        proxy.stop()
