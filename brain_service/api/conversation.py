"""A WebSocket on which every message gets one answer, in order, and the error of one is not the end of all.

Messages are taken in and stamped as they come, while the one before is still being answered: a deadline counts
from there. What waits is bounded; beyond it nothing more is read from the socket. Once the client has left, the
message in hand is answered to the end (its state moves once, and its answer can be had again) and the rest is
dropped.
"""

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.types import Receive, Scope, Send

from brain_service.api.stream import AUTHORISED, CLOSE_BASE, MAX_WAITING_BYTES, MESSAGE_BYTES
from brain_service.errors import BrainError, TooLargeError, UnauthorizedError

__all__ = ["Frame", "Incoming", "Party", "converse"]

log = logging.getLogger(__name__)

Frame = bytes | str
"""What goes into one message: bytes into a binary one, text into a text one."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message and when it came, by `time.monotonic_ns()`; text is kept as its UTF-8 bytes."""

    received_ns: int
    body: bytes = field(repr=False)
    binary: bool


class Party(Protocol):
    """The side that answers."""

    async def answer(self, message: Incoming) -> Frame:
        """Return the answer to one message.

        Raises:
            BrainError: there is none; `refusal` says so to the client.
        """

    def refusal(self, message: Incoming, error: BrainError) -> Frame:
        """Return what the client is told instead of an answer."""


async def converse(scope: Scope, receive: Receive, send: Send, party: Party, max_bytes: int) -> None:
    """Answer the messages of an accepted WebSocket until the client leaves or its token is withdrawn.

    A message over `max_bytes` is refused by itself; over the server's own limit it ends the connection (1009).
    """
    inbox = _Inbox(receive)
    authorised = scope.get(AUTHORISED, lambda: True)
    reading = asyncio.create_task(inbox.read())
    try:
        while (message := await inbox.take()) is not None:
            withdrawn = not authorised()
            if withdrawn:
                error = UnauthorizedError("the token of this connection was withdrawn")
                frame = party.refusal(message, error)
            else:
                frame = await _answer(party, message, max_bytes)
            kind = "text" if isinstance(frame, str) else "bytes"
            await send({"type": "websocket.send", kind: frame})
            if withdrawn:
                await send({"type": "websocket.close", "code": CLOSE_BASE + error.status, "reason": error.title})
                return
    except OSError:
        log.debug("a client left before its answer")
    finally:
        reading.cancel()


async def _answer(party: Party, message: Incoming, max_bytes: int) -> Frame:
    try:
        if len(message.body) > max_bytes:
            raise TooLargeError(
                f"the message has {len(message.body)} bytes, the limit is capture.max_step_bytes = {max_bytes}"
            )
        return await party.answer(message)
    except BrainError as error:
        if error.status >= 500:
            log.warning("request failed", extra=error.problem())
        return party.refusal(message, error)
    except Exception as error:
        # The conversation's boundary: one bad message must not end it.
        log.error("unexpected error", exc_info=error)
        return party.refusal(message, BrainError("unexpected error; the daemon's log has the details"))


class _Inbox:
    """What a client has sent and nobody has taken yet."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._waiting: deque[Incoming] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._gone = False

    async def read(self) -> None:
        """Take in messages until the client leaves."""
        try:
            while True:
                event: Any = await self._receive()
                if event["type"] != "websocket.receive":
                    return
                text = event.get("text")
                body = event["bytes"] if text is None else text.encode()
                self._waiting.append(Incoming(time.monotonic_ns(), bytes(body), text is None))
                self._waiting_bytes += len(body) + MESSAGE_BYTES
                self._arrived.set()
                while self._waiting_bytes > MAX_WAITING_BYTES:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._gone = True
            self._arrived.set()

    async def take(self) -> Incoming | None:
        """Return the next message, or None once the client has left."""
        while not self._waiting and not self._gone:
            self._arrived.clear()
            await self._arrived.wait()
        if self._gone:
            return None
        message = self._waiting.popleft()
        self._waiting_bytes -= len(message.body) + MESSAGE_BYTES
        self._room.set()
        return message
