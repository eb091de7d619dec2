"""WebSockets that cannot wear the daemon out: every handshake ends, and what is half said is bounded and timed."""

import asyncio
import logging
from typing import Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidMessage

from brain_service.api.door import Arrivals, Door, refusal
from brain_service.errors import BrainError, HeadTooLargeError, MalformedRequestError, UnavailableError

__all__ = ["BoundedWebSocket"]

LINGER_S = 0.5  # to read on after a close of ours: a socket closed on unread data loses the words before
FRAME_BYTES = 128  # that a frame holds beside its data: a message of empty frames is no small one
STOPPING, OVERLOADED, TOO_SLOW = 1012, 1013, 1008


def _mildly(record: logging.LogRecord) -> bool:
    """Write a client's text that is no UTF-8 as the warning that it is; uvicorn 0.54 makes it an error of ours."""
    if record.exc_info and isinstance(record.exc_info[1], UnicodeDecodeError):
        record.levelno, record.levelname, record.exc_info = logging.WARNING, "WARNING", None
        record.msg, record.args = "closed a WebSocket with 1007: its text is not UTF-8", ()
    return True


# uvicorn's own would write every query, and at level debug every header (the token's too) and every frame.
_LOG = logging.getLogger("brain_service.websocket")
_LOG.setLevel(logging.WARNING)
_LOG.addFilter(_mildly)


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket behind the door: accepted or refused in time, and held to finish what it begins to say.

    A message must be complete `body_timeout_s` after its first byte (else close 1008), and one that has no room
    among those that are arriving is closed with 1013. Both are to be sent again on a new connection.
    """

    door: Door
    arrivals: Arrivals

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = self.conn.logger = _LOG
        self.conn.debug = False
        self._timer: asyncio.TimerHandle | None = None
        self._held_bytes = 0
        self._begun_s: float | None = None
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection over from HTTP; the application must accept it in time."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.door.settings.header_timeout_s, self._time_out)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection's place, and what it had not finished saying."""
        self._release()
        self.door.leave(self.transport)
        super().connection_lost(exc)
        # Parser and connection hold each other; without this their buffers would wait for the garbage collector.
        self.conn.parser.close()
        self.conn.reader.buffer.clear()
        self.frames.clear()

    def data_received(self, data: bytes) -> None:
        """Parse what came, then see what is left unfinished."""
        if self._ended or self.transport.is_closing():
            return
        super().data_received(data)
        if not self.handshake_initiated:
            self._refuse(self._handshake_error())
            return
        held = len(self.conn.reader.buffer) + (self.conn.current_size or 0) + FRAME_BYTES * len(self.frames)
        if (held or self._held_bytes) and not self._ended:
            self._hold(held)

    def send_receive_event_to_app(self) -> None:
        """Hand a whole message over."""
        self._begun_s = None
        super().send_receive_event_to_app()

    async def receive(self) -> Any:
        """Return what came; while it waited here nothing more was read, which is no slowness of the client."""
        message = await super().receive()
        if self._begun_s is not None:
            self._begun_s = self.loop.time()
        return message

    async def send(self, message: Any) -> None:
        """Send what the application sends.

        Raises:
            ClientDisconnected: the connection has ended.
        """
        if self._ended:
            raise ClientDisconnected
        await super().send(message)
        if message["type"] == "websocket.accept":
            self._clear_timer()
            self.door.prove(self.transport)
        # uvicorn 0.54 logs a refused handshake as one that was forgotten; to be removed when it does not.
        elif message["type"] == "websocket.http.response.body":
            self.handshake_complete = True

    def shutdown(self) -> None:
        """Close because the daemon stops: 1012, or 503 for a handshake."""
        if self._ended or self.close_sent or self.transport.is_closing():
            super().shutdown()
        elif self.handshake_complete:
            self._fail(STOPPING, "the daemon stops")
        else:
            self._refuse(UnavailableError("the daemon is stopping; connect again in a moment"))

    def handle_parser_exception(self) -> None:
        """Say why the connection is closed, and give the client a moment to hear it."""
        self.stop_keepalive()
        self._release()
        close = self.conn.close_sent
        if close is None:  # no handshake yet: there is nobody to say it to
            self.transport.close()
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = self._ended = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(LINGER_S, self.transport.close)

    def _hold(self, held_bytes: int) -> None:
        """Note how much of an unfinished message is here."""
        room = self.arrivals.hold(self._held_bytes, held_bytes)
        self._held_bytes = held_bytes
        if not room:
            self._fail(OVERLOADED, "too many unfinished messages; send smaller ones, or later")
        elif not held_bytes:
            self._begun_s = None
        elif self._begun_s is None:
            self._begun_s = self.loop.time()
            # One timer for many messages: at the pace of a robot, setting one for each would cost more than it.
            if self._timer is None:
                self._timer = self.loop.call_later(self.door.settings.body_timeout_s, self._time_out)

    def _time_out(self) -> None:
        self._timer = None
        if not self.handshake_complete:
            self._refuse(UnavailableError("the connection was not accepted in time; connect again in a moment"))
        elif self._begun_s is not None:
            if self.read_paused:
                self._begun_s = self.loop.time()
            left_s = self._begun_s + self.door.settings.body_timeout_s - self.loop.time()
            if left_s <= 0:
                self._fail(TOO_SLOW, f"a message took longer than {self.door.settings.body_timeout_s:g} s")
            else:
                self._timer = self.loop.call_later(left_s, self._time_out)

    def _fail(self, code: int, reason: str) -> None:
        self.conn.fail(code, reason)
        self.handle_parser_exception()

    def _handshake_error(self) -> BrainError:
        """Return why the parser refuses a head that HTTP took."""
        error = self.conn.handshake_exc
        if isinstance(error, InvalidMessage):
            return MalformedRequestError(f"no WebSocket handshake: {error.__cause__ or error}")
        return HeadTooLargeError(f"the head of the WebSocket handshake is too large: {error}")

    def _refuse(self, error: BrainError) -> None:
        """Answer the handshake in place of the application, and close."""
        self._release()
        if not self.transport.is_closing():
            self.handshake_complete = self._ended = True
            self.transport.write(refusal(error))
            self.transport.close()

    def _release(self) -> None:
        self._clear_timer()
        self.arrivals.hold(self._held_bytes, 0)
        self._held_bytes = 0
        self._begun_s = None

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
