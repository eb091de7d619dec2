"""sd_notify(3) without a library: one datagram a message, to the socket that systemd named."""

import logging
import socket

__all__ = ["Notifier"]

log = logging.getLogger(__name__)


class Notifier:
    """Tells the service manager how the service is; without one (`address` None) every call does nothing.

    `address` is a path, or `@name` for an abstract socket. A message that cannot be delivered is dropped: systemd
    then judges by its timeouts, which is what they are for.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address.replace("@", "\0", 1) if address and address.startswith("@") else address
        self._socket: socket.socket | None = None
        self._status = ""
        if self._address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            # Called on the event loop: a manager whose queue is full must not hold it.
            self._socket.setblocking(False)

    @property
    def listened_to(self) -> bool:
        """Whether anybody asked to be told."""
        return self._socket is not None

    def ready(self, status: str) -> None:
        """Tell that the service answers."""
        self._send(f"READY=1\nSTATUS={_line(status)}")

    def status(self, status: str) -> None:
        """Tell how it is in words, for `systemctl status`; the same words are told once."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={_line(status)}")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Tell that the stop has begun."""
        self._send("STOPPING=1\nSTATUS=stopping: what runs is finished, what was accepted is flushed")

    def extend(self, timeout_s: float) -> None:
        """Ask for `timeout_s` more seconds, from now, for the start or the stop that is under way."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(timeout_s * 1e6)}")

    def close(self) -> None:
        """Release the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None or self._address is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:
            log.warning("the service manager cannot be told", extra={"reason": error.strerror or str(error)})


def _line(text: str) -> str:
    return " ".join(text.split())[:500]
