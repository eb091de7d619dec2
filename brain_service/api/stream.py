"""`WS /episodes/{id}/stream`: steps over one connection, acknowledged in order, never faster than the medium.

A text message is a JSON step, a JSON array of steps or NDJSON; a binary message is a step or an array in msgpack.
The daemon answers in the kind of the client's last message: `{"step_index": n, "durable_through": d}` once every
message up to step n is accepted (one answer may cover many messages), and again when `durable_through` rises. An
error is one last message, the problem document, before the close with code 4000 + its status: what was not
acknowledged is to be sent again, on a new connection. Over the rate limit nothing is refused here: the socket's
window closes until there is room again.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from brain_service.api.problems import encode_problem
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import BrainError, ConflictError, TooManyError, UnauthorizedError

__all__ = ["AUTHORISED", "serve_stream"]

log = logging.getLogger(__name__)

AUTHORISED = "brain_service.authorised"
"""Scope member that the guard sets: a function that tells whether the token of this connection still holds."""

MESSAGE_BYTES = 512  # what a message costs beside its bytes
MAX_WAITING_BYTES = 1024**2  # received and not yet accepted; beyond it nothing more is read from the socket
MAX_TAKEN_BYTES = 56 * 1024  # handed to the store at once: it takes that on its quick lane
CLOSE_BASE = 4000

JSON, NDJSON, MSGPACK = "application/json", "application/x-ndjson", "application/msgpack"


async def serve_stream(store: EpisodeStore, episode_id: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Accept the connection and serve it until one side closes it."""
    await receive()
    await send({"type": "websocket.accept"})
    stream = _Stream(store, episode_id, receive, send, scope.get(AUTHORISED, lambda: True))
    try:
        await stream.open()
    except BrainError as error:
        await stream.refuse(error)
    else:
        await stream.run()


class _Stream:
    """One connection: a reader that gathers messages, and a task that submits them and answers."""

    def __init__(
        self, store: EpisodeStore, episode_id: str, receive: Receive, send: Send, authorised: Callable[[], bool]
    ) -> None:
        self._store = store
        self._episode_id = episode_id
        self._receive = receive
        self._send = send
        self._authorised = authorised
        self._waiting: deque[tuple[str, bytes]] = deque()  # media type and body of each message
        self._waiting_bytes = 0
        self._room = asyncio.Event()
        self._wake = asyncio.Event()
        self._gone = False
        self._deaf = False
        self._binary = False
        self._step_index = -1
        self._durable_through = -1
        self._told_durable = -1
        self._unwatch: Callable[[], None] = lambda: None

    async def open(self) -> None:
        """Check that the episode takes steps.

        Raises:
            NotFoundError: no such episode.
            ConflictError: it has ended.
        """
        summary = await self._store.run(self._store.get, self._episode_id)
        if summary["state"] != "open":
            raise ConflictError(
                f"episode {self._episode_id!r} has ended as {summary['state']}; POST /episodes starts another",
                next_step_index=summary["steps"],
            )
        self._step_index = summary["steps"] - 1
        self._told_durable = summary["durable_through"]
        self._unwatch = self._store.watch_durable(self._episode_id, self._note_durable)

    async def run(self) -> None:
        """Serve until the client leaves or an error ends the stream."""
        answering = asyncio.create_task(self._answer_all())
        try:
            await self._read_all()
            # What has arrived whole is still recorded, though nobody waits for its answer.
            self._gone = True
            self._wake.set()
            await answering
        finally:
            answering.cancel()
            self._unwatch()

    async def refuse(self, error: BrainError) -> None:
        """Send the problem document and close."""
        document = error.problem()
        if error.status >= 500:
            log.warning("stream failed", extra={"episode_id": self._episode_id, **document})
        # A client that has left needs no answer.
        with contextlib.suppress(OSError):
            await self._tell(encode_problem(document) if not self._binary else msgspec.msgpack.encode(document))
            await self._send({"type": "websocket.close", "code": CLOSE_BASE + error.status, "reason": error.title})

    async def _read_all(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] != "websocket.receive":
                return
            if self._gone:
                continue
            text = message.get("text")
            body = message["bytes"] if text is None else text.encode()
            self._waiting.append((MSGPACK if text is None else _text_kind(body), bytes(body)))
            self._waiting_bytes += len(body) + MESSAGE_BYTES
            self._wake.set()
            while self._waiting_bytes > MAX_WAITING_BYTES and not self._gone:
                self._room.clear()
                await self._room.wait()

    async def _answer_all(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    await self._submit()
                if self._durable_through > self._told_durable:
                    await self._acknowledge()
                if self._gone:
                    return
        except BrainError as error:
            await self.refuse(error)
        except Exception:
            # The stream's own boundary: the robot is told, and the daemon goes on.
            log.exception("unexpected error", extra={"episode_id": self._episode_id})
            await self.refuse(BrainError("unexpected error; the daemon's log has the details"))
        finally:
            # The reader drops what still comes, and ends with the connection.
            self._gone = True
            self._room.set()

    async def _submit(self) -> None:
        if not self._authorised():
            raise UnauthorizedError("the token of this connection was withdrawn")
        kind, bodies = self._take()
        done = await self._store.ingest(self._episode_id, bodies, kind)
        self._binary = kind == MSGPACK
        if done.appended is not None:
            self._step_index = done.appended.step_index
            self._durable_through = max(self._durable_through, done.appended.durable_through)
            await self._acknowledge()
        if isinstance(done.error, TooManyError) and "retry_after_s" in done.error.members and not self._gone:
            self._waiting.extendleft((kind, body) for body in reversed(bodies[done.consumed :]))
            self._waiting_bytes += sum(len(body) + MESSAGE_BYTES for body in bodies[done.consumed :])
            await asyncio.sleep(done.error.members["retry_after_s"])
        elif done.error is not None:
            raise done.error

    def _take(self) -> tuple[str, list[bytes]]:
        """Take the first messages of one kind, up to `MAX_TAKEN_BYTES`, and at least one."""
        kind = self._waiting[0][0]
        bodies: list[bytes] = []
        taken_bytes = 0
        while self._waiting and self._waiting[0][0] == kind and taken_bytes < MAX_TAKEN_BYTES:
            body = self._waiting.popleft()[1]
            taken_bytes += len(body) + MESSAGE_BYTES
            bodies.append(body)
        self._waiting_bytes -= taken_bytes
        if self._waiting_bytes <= MAX_WAITING_BYTES:
            self._room.set()
        return kind, bodies

    def _note_durable(self, durable_through: int) -> None:
        self._durable_through = max(self._durable_through, durable_through)
        self._wake.set()

    async def _acknowledge(self) -> None:
        if not self._authorised():
            raise UnauthorizedError("the token of this connection was withdrawn")
        self._told_durable = self._durable_through
        if self._binary:
            document = {"step_index": self._step_index, "durable_through": self._durable_through}
            await self._tell(msgspec.msgpack.encode(document))
        else:
            await self._tell(b'{"step_index":%d,"durable_through":%d}' % (self._step_index, self._durable_through))

    async def _tell(self, data: bytes) -> None:
        if self._deaf:
            return
        message: dict[str, Any] = {"type": "websocket.send"}
        message |= {"bytes": data} if self._binary else {"text": data.decode()}
        try:
            await self._send(message)
        except OSError:
            # The client has left: what it sent before is still to be read and recorded.
            self._deaf = True


def _text_kind(body: bytes) -> str:
    """Tell NDJSON from JSON: between two lines of one JSON text never stands `}` before and `{` after."""
    first, newline, rest = body.strip().partition(b"\n")
    return NDJSON if newline and first.rstrip().endswith(b"}") and rest.lstrip().startswith(b"{") else JSON
