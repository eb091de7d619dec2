"""The two ways of steps to the daemon: a WebSocket stream with acknowledgements, or one POST after another."""

import asyncio
import contextlib
from collections import deque
from typing import Protocol

import httpx
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException

from brain_service.client.calls import Call, ask, episode_path, fetch_json, read_object, run_async
from brain_service.client.endpoint import Endpoint
from brain_service.client.errors import ClientError, UnreachableError, problem_error
from brain_service.client.wire import MSGPACK, decode_object, join_steps

__all__ = ["Feed", "Link", "NoStreamError", "PostLink", "StreamLink"]

POST_POLL_S = 0.25  # how often a sender that has nothing to send asks whether the rest is durable
STREAM_POLL_S = 1.0  # the same where the daemon tells by itself, should it once not have
MESSAGES_IN_FLIGHT = 4  # while they are on their way the next steps gather into a larger message
SPEAKING_S = 1.0  # how long a stream that breaks may take to say why


class Feed(Protocol):
    """What a link asks of the sender. All of it happens on one event loop, and indices are the episode's own."""

    @property
    def accepted_steps(self) -> int:
        """How many steps of the episode the daemon has accepted."""

    async def take(self) -> tuple[int, list[bytes]]:
        """Return the index of the last of the next steps to send, and the steps; none: nothing to send now."""

    async def wait(self, timeout_s: float | None = None, *, room: bool = True) -> bool:
        """Wait for acknowledgements, the end or (with `room` for them) steps; False after `timeout_s` seconds."""

    def acknowledge(self, accepted_through: int, durable_through: int) -> None:
        """Take in what the daemon said."""

    @property
    def finishing(self) -> bool:
        """Whether the episode is to end and every step is accepted."""

    @property
    def all_durable(self) -> bool:
        """Whether there is nothing more to learn about the steps sent so far."""


class Link(Protocol):
    """A way of steps to the daemon."""

    async def deliver(self, feed: Feed) -> None:
        """Send what the feed gives until it is finishing.

        Raises:
            ClientError: the way is cut, or the daemon refuses.
        """


class NoStreamError(ClientError):
    """The way to the daemon carries no WebSocket; POST it is."""


class PostLink:
    """Batches in msgpack, one POST at a time: what gathers during one is the next."""

    def __init__(self, http: httpx.AsyncClient, episode_id: str) -> None:
        self._http = http
        self._path = episode_path(episode_id)

    async def deliver(self, feed: Feed) -> None:
        """Send what the feed gives until it is finishing.

        Raises:
            ClientError: the way is cut, or the daemon refuses.
        """
        while True:
            _, steps = await feed.take()
            if steps:
                call = Call("POST", f"{self._path}/steps", join_steps(steps), headers={"Content-Type": MSGPACK})
                answer = read_object(await run_async(self._http, ask(call)))
                feed.acknowledge(answer["step_index"], answer["durable_through"])
            elif feed.finishing:
                return
            elif not await feed.wait(None if feed.all_durable else POST_POLL_S):
                await _look(self._http, self._path, feed)


async def _look(http: httpx.AsyncClient, path: str, feed: Feed) -> None:
    """Ask the daemon how far it is.

    Raises:
        UnreachableError: it is not there, or came back from a power cut.
    """
    summary = await run_async(http, fetch_json(path))
    if summary["steps"] < feed.accepted_steps:
        raise UnreachableError(f"the daemon came back with {summary['steps']} steps, fewer than it had")
    feed.acknowledge(feed.accepted_steps - 1, summary["durable_through"])


class StreamLink:
    """One WebSocket: messages out, cumulative acknowledgements in, a few messages on their way at a time."""

    def __init__(self, endpoint: Endpoint, http: httpx.AsyncClient, episode_id: str) -> None:
        self._endpoint = endpoint
        self._http = http
        self._path = episode_path(episode_id)
        self._in_flight: deque[int] = deque()  # the last step of each message that is not acknowledged

    async def deliver(self, feed: Feed) -> None:
        """Send what the feed gives until it is finishing.

        Raises:
            NoStreamError: the daemon, or a proxy before it, has no WebSocket here.
            ClientError: the way is cut, or the daemon refuses.
        """
        self._in_flight.clear()
        try:
            async with self._endpoint.stream(f"{self._path}/stream") as socket:
                await self._both_ways(socket, feed)
        except InvalidStatus as error:
            if error.response.status_code in (429, 503):
                waiting = error.response.headers.get("Retry-After", "")
                document = {"status": error.response.status_code, "title": "Not now"}
                asked = {"retry_after_s": float(waiting)} if waiting.isdigit() else {}
                raise problem_error(document | asked) from error
            raise NoStreamError(f"{self._path} is no WebSocket: {error}") from error
        except InvalidHandshake as error:
            raise NoStreamError(f"{self._path} is no WebSocket: {error}") from error
        except (OSError, EOFError, WebSocketException) as error:
            raise UnreachableError(
                f"{self._path}: {error or type(error).__name__}; is the daemon running?"
            ) from error

    async def _both_ways(self, socket: ClientConnection, feed: Feed) -> None:
        listening = asyncio.create_task(self._listen(socket, feed))
        speaking = asyncio.create_task(self._speak(socket, feed))
        try:
            await asyncio.wait({listening, speaking}, return_when=asyncio.FIRST_COMPLETED)
            if speaking.done() and not listening.done() and speaking.exception() is not None:
                # What broke the sending may stand as a problem among what was received.
                await asyncio.wait({listening}, timeout=SPEAKING_S)
            for task in (listening, speaking):
                if task.done() and (error := task.exception()) is not None:
                    raise error
        finally:
            for task in (listening, speaking):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, ClientError, ConnectionClosed):
                    await task

    async def _speak(self, socket: ClientConnection, feed: Feed) -> None:
        while not feed.finishing:
            room = len(self._in_flight) < MESSAGES_IN_FLIGHT
            last, steps = await feed.take() if room else (-1, [])
            if steps:
                self._in_flight.append(last)
                await socket.send(join_steps(steps))
            elif not await feed.wait(None if feed.all_durable else STREAM_POLL_S, room=room):
                await _look(self._http, self._path, feed)

    async def _listen(self, socket: ClientConnection, feed: Feed) -> None:
        try:
            while True:
                answer = decode_object(await socket.recv())
                if "status" in answer:
                    raise problem_error(answer)
                while self._in_flight and self._in_flight[0] <= answer["step_index"]:
                    self._in_flight.popleft()
                feed.acknowledge(answer["step_index"], answer["durable_through"])
        except ConnectionClosed as error:
            code = 0 if error.rcvd is None else error.rcvd.code
            reason = "" if error.rcvd is None else error.rcvd.reason
            if code == 1009:
                raise problem_error({"status": 413, "title": "Too large", "detail": reason}) from error
            if 4400 <= code < 4600:
                raise problem_error({"status": code - 4000, "title": reason, "detail": reason}) from error
            raise UnreachableError(f"{self._path}: the stream was cut ({error})") from error
