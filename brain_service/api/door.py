"""The door that every connection comes through: it counts them, and what they hold without having said it all."""

import asyncio
import logging
import socket

from brain_service.api.problems import encode_problem, problem_headers
from brain_service.errors import BrainError
from brain_service.settings import HttpSettings

__all__ = ["Arrivals", "Door", "refusal"]

log = logging.getLogger(__name__)

UNPROVEN_GRACE_S = 1.0  # a connection without one complete head may be closed for another after this long
REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}
SMALL_BYTES = 64 * 1024  # of one sender: what a socket hands over in one piece is never too much


class Arrivals:
    """Bytes of messages that are still arriving, over all connections: what many slow senders hold together."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def hold(self, before_bytes: int, now_bytes: int) -> bool:
        """Note that one sender holds `now_bytes` instead of `before_bytes`; tell whether there is room for it.

        A sender of at most 64 KiB always has room: the number of connections bounds those.
        """
        self.held_bytes += now_bytes - before_bytes
        return self.held_bytes <= self.limit_bytes or now_bytes <= SMALL_BYTES


def refusal(error: BrainError) -> bytes:
    """Return the whole answer of a connection that is closed before any application saw its request."""
    document = error.problem()
    body = encode_problem(document)
    head = [b"HTTP/1.1 %d %b\r\n" % (error.status, REASONS.get(error.status, error.title.encode()))]
    for name, value in problem_headers(document).items():
        head.append(f"{name.lower()}: {value}\r\n".encode())
    head.append(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body))
    return b"".join(head) + body


class Door:
    """Counts the TCP connections, and knows which have not sent a complete head yet, oldest first."""

    def __init__(self, settings: HttpSettings) -> None:
        self.settings = settings
        self._inside: set[asyncio.BaseTransport] = set()
        self._unproven: dict[asyncio.Transport, float] = {}
        self._warned_s = float("-inf")

    def enter(self, transport: asyncio.Transport, now_s: float) -> bool:
        """Take a connection in, if need be in the place of one that never asked for anything; else False."""
        bound = transport.get_extra_info("socket")
        if bound is None or bound.family == socket.AF_UNIX:
            return True
        if len(self._inside) >= self.settings.max_connections and not self._make_room(now_s):
            if now_s - self._warned_s > 10:
                self._warned_s = now_s
                log.warning("connections refused", extra={"max_connections": self.settings.max_connections})
            return False
        self._inside.add(transport)
        self._unproven[transport] = now_s
        return True

    def prove(self, transport: asyncio.Transport) -> None:
        """Note that a connection has sent a complete head."""
        self._unproven.pop(transport, None)

    def leave(self, transport: asyncio.Transport) -> None:
        """Forget a connection."""
        self._inside.discard(transport)
        self._unproven.pop(transport, None)

    def _make_room(self, now_s: float) -> bool:
        oldest = next(iter(self._unproven), None)
        if oldest is None or now_s - self._unproven[oldest] < UNPROVEN_GRACE_S:
            return False
        self.leave(oldest)
        oldest.abort()
        return True
