"""A session's own WebSocket: `/infer` goes over it, all else over HTTP as before.

Either class stands in for the httpx client of its kind, so that the flows of a session do not know the difference.
A connection that was cut, or on which an answer is overdue, is dropped, and the next `/infer` opens another: a
late answer is never taken for that of a newer observation.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection as AsyncConnection
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection

from brain_service.client.calls import INFER_PATH
from brain_service.client.endpoint import Endpoint
from brain_service.client.wire import decode_object

__all__ = ["AsyncInferStream", "InferStream"]

STREAM_PATH = f"{INFER_PATH}/stream"


class InferStream:
    """An `httpx.Client` whose `/infer` goes over a WebSocket, for one session on one thread."""

    def __init__(self, http: httpx.Client, endpoint: Endpoint) -> None:
        self._http = http
        self._endpoint = endpoint
        self._open = contextlib.ExitStack()
        self._connection: ClientConnection | None = None

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Make one request.

        Raises:
            httpx.HTTPError: as httpx's own.
        """
        if path != INFER_PATH:
            return self._http.request(method, path, **options)
        give_up_s = time.monotonic() + options.get("timeout", self._endpoint.timeout_s)
        try:
            with _as_httpx():
                if self._connection is None:
                    self._connection = self._open.enter_context(self._endpoint.sync_stream(STREAM_PATH))
                self._connection.send(options["content"], text=True)
                return _response(self._connection.recv(timeout=max(0.0, give_up_s - time.monotonic())))
        except InvalidStatus as error:
            return _refusal(error)
        except BaseException:
            # Raised again: after any failure, an interrupt too, an answer may still come that is no later call's.
            self.drop()
            raise

    def drop(self) -> None:
        """Cut the connection without a word: a robot has no time for the closing handshake."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
        self._open.close()


class AsyncInferStream:
    """The same for an event loop."""

    def __init__(self, http: httpx.AsyncClient, endpoint: Endpoint) -> None:
        self._http = http
        self._endpoint = endpoint
        self._open = contextlib.AsyncExitStack()
        self._connection: AsyncConnection | None = None

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Make one request.

        Raises:
            httpx.HTTPError: as httpx's own.
        """
        if path != INFER_PATH:
            return await self._http.request(method, path, **options)
        try:
            with _as_httpx():
                async with asyncio.timeout(options.get("timeout", self._endpoint.timeout_s)):
                    if self._connection is None:
                        connecting = self._endpoint.stream(STREAM_PATH)
                        self._connection = await self._open.enter_async_context(connecting)
                    await self._connection.send(options["content"], text=True)
                    return _response(await self._connection.recv())
        except InvalidStatus as error:
            return _refusal(error)
        except BaseException:
            # As in `InferStream`; a cancelled call, too, leaves an answer on its way.
            await self.drop()
            raise

    async def drop(self) -> None:
        """Cut the connection, as `InferStream.drop`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.transport.abort()
        await self._open.aclose()


@contextlib.contextmanager
def _as_httpx() -> Iterator[None]:
    """Raise what goes wrong on the way as httpx does; a refused handshake is an answer, and raised as it is."""
    try:
        yield
    except InvalidStatus:
        raise
    except TimeoutError as error:
        raise httpx.ReadTimeout("no answer in time") from error
    except (OSError, EOFError, WebSocketException) as error:
        raise httpx.ReadError(f"the stream was cut: {error or type(error).__name__}") from error


def _response(frame: str | bytes) -> httpx.Response:
    """Return a message as the answer that it would be over HTTP: of the two only a problem has a status."""
    return _answer(
        int(decode_object(frame).get("status", 200)), frame.encode() if isinstance(frame, str) else frame
    )


def _refusal(error: InvalidStatus) -> httpx.Response:
    return _answer(error.response.status_code, bytes(error.response.body or b""))


def _answer(status: int, content: bytes) -> httpx.Response:
    return httpx.Response(status, content=content, request=httpx.Request("GET", f"http://brain{STREAM_PATH}"))
