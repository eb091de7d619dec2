"""What systemd tells a service through its environment: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3)."""

import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass

from brain_service.settings import take_variables

__all__ = ["ServiceManager"]

FIRST_FD = 3
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@dataclass(frozen=True)
class ServiceManager:
    """Where the service manager listens, how often it wants to hear, and the sockets that it holds open for us.

    `socket_names` has a name for each inherited descriptor, the first of which is 3.
    """

    notify_socket: str | None = None
    watchdog_s: float | None = None
    socket_names: tuple[str, ...] = ()

    @staticmethod
    def take(environ: MutableMapping[str, str] | None = None) -> "ServiceManager":
        """Read the variables and remove them; what was meant for another process is not heeded."""
        found = take_variables(VARIABLES, environ)
        me = str(os.getpid())
        watchdog_us = _whole(found.get("WATCHDOG_USEC")) if found.get("WATCHDOG_PID", me) == me else 0
        count = _whole(found.get("LISTEN_FDS")) if found.get("LISTEN_PID") == me else 0
        given = found.get("LISTEN_FDNAMES", "").split(":")
        names = tuple(given[n] if n < len(given) else "unknown" for n in range(count))
        return ServiceManager(found.get("NOTIFY_SOCKET") or None, watchdog_us / 1e6 or None, names)

    def sockets(self) -> list[tuple[str, socket.socket]]:
        """Return the inherited sockets with their names; they are ours to close, and no child inherits them.

        Raises:
            OSError: a descriptor is no socket.
        """
        found = []
        for fd, name in enumerate(self.socket_names, FIRST_FD):
            os.set_inheritable(fd, False)
            found.append((name, socket.socket(fileno=fd)))
        return found


def _whole(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() else 0
