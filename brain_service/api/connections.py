"""Connections that cannot wear the daemon out: bounded in number, in time and in what they make it keep.

uvicorn's own protocols with a door in front: a head must be complete within `header_timeout_s`, a body within
`body_timeout_s` (408), a head is bounded (431), a body that nobody wants any more is read on for a little while
only (so that the client sees its answer), and of TCP connections there are at most `max_connections` (503). The
Unix socket is not counted: a controller on the robot gets in whatever the network does.

A client that has sent its request and closed its sending half still gets its answer (RFC 9112, section 9.6).
"""

import asyncio
import socket
import sys
from typing import Any

from httptools import HttpParserInvalidMethodError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from brain_service.api.door import Arrivals, Door, refusal
from brain_service.api.peer import peer_of
from brain_service.api.websocket import BoundedWebSocket
from brain_service.errors import (
    BrainError,
    HeadTooLargeError,
    MalformedRequestError,
    RequestTimeoutError,
    UnavailableError,
)
from brain_service.settings import HttpSettings

__all__ = ["make_protocols"]

MAX_HEAD_BYTES = 64 * 1024
MAX_UNWANTED_BYTES = 64 * 1024**2  # of a body after its answer: more than any socket buffers is cut off

IDLE, HEAD, BODY = "idle", "head", "body"


class _Corked:
    """A transport for answers that writes head and body at once.

    uvicorn writes them one by one, each a system call that wakes the client. What is held goes out with the end of
    the answer, or, where that is still to come (a stream of events), with the next turn of the loop.
    """

    __slots__ = ("_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Write with whatever comes until the loop turns."""
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)

    def close(self) -> None:
        """Write the rest and close."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Tell whether the connection is closed or about to be."""
        return self._transport.is_closing()

    def flush(self) -> None:
        """Write what is held."""
        if self._held:
            self._transport.write(b"".join(self._held))
            self._held.clear()


class _BoundedHttp(HttpToolsProtocol):
    """HTTP/1.1 behind the door. Timers are set only for a request that does not arrive in one piece."""

    door: Door

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase = IDLE
        self._timed = ""
        self._timer: asyncio.TimerHandle | None = None
        self._requests = 0
        self._head_bytes = 0
        self._unwanted_bytes = 0
        self._half_closed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection in, or answer 503 and close it."""
        super().connection_made(transport)
        bound = transport.get_extra_info("socket")
        if bound is not None and bound.family == socket.AF_UNIX:
            self.client = (peer_of(bound), 0)
        self._corked = _Corked(transport, self.loop)
        if self.door.enter(transport, self.loop.time()):
            self._set_timer(HEAD)
        else:
            limit = self.door.settings.max_connections
            self._refuse(UnavailableError(f"{limit} connections are open, the limit is http.max_connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection's place."""
        self._clear_timer()
        self.door.leave(self.transport)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, then see whether the request is complete."""
        if self.transport.is_closing():
            return
        before = self._requests
        super().data_received(data)
        if self._phase != IDLE or self._timed:
            self._watch(0 if self._requests != before else len(data))

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep a half-closed connection until its answer is sent, yet not for ever."""
        answering = self.cycle is not None and not self.cycle.response_complete and self._phase == IDLE
        if not answering or self.transport.is_closing():
            return False
        self.cycle.keep_alive = False
        self._half_closed = True
        self._set_timer(BODY)
        return True

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._phase = HEAD
        self._requests += 1
        self._head_bytes = self._unwanted_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note the end of the head."""
        self._phase = BODY
        super().on_headers_complete()
        if self.parser.should_upgrade() and self._should_upgrade():
            # A WebSocket has proved itself when it is accepted.
            if any(
                name in (b"content-length", b"transfer-encoding") and value != b"0" for name, value in self.headers
            ):
                self._refuse(MalformedRequestError("a WebSocket handshake has no body; leave Content-Length out"))
            return
        self.door.prove(self.transport)
        if self.cycle is not None:
            self.cycle.transport = self._corked  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        """Note the end of the request."""
        self._phase = IDLE
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Send the answer off, and go on to the next request."""
        self._corked.flush()
        super().on_response_complete()

    def shutdown(self) -> None:
        """Let what is being answered end; a request that is not complete is to be sent to the next daemon."""
        arriving = self._phase != IDLE and not self.pipeline and not self.transport.is_closing()
        answering = self.cycle is not None and not self.cycle.response_complete
        if arriving and (not answering or (self._phase == BODY and not self.cycle.response_started)):
            self._refuse(UnavailableError("the daemon is stopping; send the request again in a moment"))
        else:
            super().shutdown()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over, with all of its bounds."""
        self._clear_timer()
        self._phase = IDLE
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._refuse(MalformedRequestError("a WebSocket handshake before the answer to the request before it"))
        else:
            super().handle_websocket_upgrade()
            self.parser = None  # type: ignore[assignment]  # they hold each other, and nobody else does any more

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP with a problem document, and close."""
        if isinstance(sys.exc_info()[1], HttpParserInvalidMethodError):
            msg = "the request has no HTTP method; GET, POST and DELETE are known"
        self._refuse(MalformedRequestError(msg))

    def _watch(self, more_bytes: int) -> None:
        """Bound the request that is not complete yet; `more_bytes` of it came, 0 where it began just now."""
        if self.transport.is_closing():
            return
        if self._phase == HEAD:
            self._head_bytes += more_bytes
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(HeadTooLargeError(f"the head of the request is over {MAX_HEAD_BYTES} bytes"))
                return
        elif self._phase == BODY and self.cycle.response_complete:
            self._unwanted_bytes += more_bytes
            if self._unwanted_bytes > MAX_UNWANTED_BYTES:
                self.transport.close()
                return
        if self._phase == IDLE:
            self._clear_timer()
        elif self._phase != self._timed or not more_bytes:
            self._set_timer(self._phase)

    def _set_timer(self, phase: str) -> None:
        self._clear_timer()
        settings = self.door.settings
        self._timed = phase
        timeout_s = settings.header_timeout_s if phase == HEAD else settings.body_timeout_s
        self._timer = self.loop.call_later(timeout_s, self._time_out)

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._timed = ""

    def _time_out(self) -> None:
        phase, self._timer, self._timed = self._timed, None, ""
        if self.transport.is_closing():
            return
        if self._half_closed or self._phase == IDLE:
            self.transport.close()  # it never asked for anything, or its answer does not come
        elif self.flow.read_paused or self.pipeline:
            self._set_timer(phase)  # it is we who do not read
        elif self._phase == BODY and self.cycle.response_started:
            self.transport.close()
        else:
            part, name = ("head", "header") if self._phase == HEAD else ("body", "body")
            limit_s = getattr(self.door.settings, f"{name}_timeout_s")
            self._refuse(RequestTimeoutError(f"the {part} of the request took longer than {limit_s:g} s"))

    def _refuse(self, error: BrainError) -> None:
        """Answer in place of the application, which is told that the client left, and close."""
        self._clear_timer()
        self.transport.write(refusal(error))
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


def make_protocols(
    settings: HttpSettings, arrivals: Arrivals
) -> tuple[type[asyncio.Protocol], type[asyncio.Protocol]]:
    """Return uvicorn's `http` and `ws` protocol classes, which share one new door; `arrivals` bounds messages."""
    door = Door(settings)
    http = type("BoundedHttp", (_BoundedHttp,), {"door": door})
    websocket = type("BoundedWebSocket", (BoundedWebSocket,), {"door": door, "arrivals": arrivals})
    return http, websocket
