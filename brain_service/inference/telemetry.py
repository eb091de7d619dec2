"""What a backend measures of its device, on its way to the daemon: between two steps, never inside one."""

import select
import socket
import time
from typing import Any

from brain_service.inference.protocol import MAX_MESSAGE_BYTES, Kind, encode_document

__all__ = ["PERIOD_S", "Reporter"]

PERIOD_S = 5.0
"""A measurement keeps the next step waiting for about a millisecond."""


class Reporter:
    """The worker's ear: waits for messages, and while it waits reports the telemetry of policies that have any."""

    def __init__(self, sock: socket.socket, policy: Any, period_s: float = PERIOD_S) -> None:
        self._sock = sock
        self._measure = getattr(policy, "telemetry", None)
        self._period_s = period_s
        self._due_s = time.monotonic() + period_s

    def receive(self) -> bytes:
        """Return the next message, empty when the daemon is gone; reports that are due go out first.

        Raises:
            BrokenPipeError, ConnectionResetError: the daemon is gone.
        """
        while self._measure is not None:
            left_s = self._due_s - time.monotonic()
            if left_s <= 0:
                self._sock.send(encode_document(Kind.TELEMETRY, self._measure()))
                self._due_s = time.monotonic() + self._period_s
            elif select.select([self._sock], [], [], left_s)[0]:
                break
        return self._sock.recv(MAX_MESSAGE_BYTES)
