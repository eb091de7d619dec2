"""uvicorn as the daemon runs it: sockets that were opened before, TLS on TCP alone, stops that end."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from brain_service.settings import Settings

__all__ = ["Server", "answers", "make_server"]

KEEP_ALIVE_S = 75
GRACEFUL_S = 3
PROBE_TIMEOUT_S = 30.0


class Server(uvicorn.Server):
    """Leaves signals to its owner (uvicorn would raise them again before the services are closed).

    `listening` is set once every socket is served; `stopping` is for the owner to set.
    """

    def __init__(self, config: uvicorn.Config, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self.stopping = asyncio.Event()
        self._tls = tls

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handlers."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve the sockets; uvicorn would put TLS before all of them or none."""
        bound = sockets or []
        encrypted = [] if self._tls is None else [each for each in bound if each.family != socket.AF_UNIX]
        await super().startup([each for each in bound if each not in encrypted])
        for each in encrypted:
            self.servers.append(
                await asyncio.get_running_loop().create_server(
                    self._protocol,
                    sock=each,
                    ssl=self._tls,
                    backlog=self.config.backlog,
                    # A handshake that dawdles is held no longer than a head that does.
                    ssl_handshake_timeout=10.0,
                )
            )
        self.listening.set()

    def _protocol(self) -> asyncio.Protocol:
        made: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = made(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def make_server(
    app: FastAPI, protocols: tuple[Any, Any], settings: Settings, tls: ssl.SSLContext | None
) -> Server:
    """Return the server of `app`; `protocols` are those for HTTP and WebSocket."""
    http, websocket = protocols
    config = uvicorn.Config(
        app,
        http=http,
        ws=websocket,
        # Compressing 3 kB of numbers costs more than the step that they are.
        ws_per_message_deflate=False,
        ws_max_size=settings.capture.max_body_bytes,
        log_config=None,
        access_log=False,
        server_header=False,
        # No proxy stands before a robot: whoever asks is who the socket says.
        proxy_headers=False,
        lifespan="off",
        # Longer than clients keep an idle connection, so that none is closed under a request.
        timeout_keep_alive=KEEP_ALIVE_S,
        # An open event stream would otherwise hold the shutdown for ever.
        timeout_graceful_shutdown=GRACEFUL_S,
    )
    return Server(config, tls)


async def answers(bound: socket.socket, *, tls: bool) -> None:
    """Ask `/livez` through one of our own sockets and return once it has answered 200.

    Raises:
        OSError: nothing answers there.
        TimeoutError: not within 30 s.
    """
    request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    name = bound.getsockname()
    async with asyncio.timeout(PROBE_TIMEOUT_S):
        if bound.family == socket.AF_UNIX:
            reader, writer = await asyncio.open_unix_connection(name)
        else:
            reader, writer = await asyncio.open_connection(name[0], name[1], ssl=_own() if tls else None)
        try:
            writer.write(request)
            status = await reader.readline()
        finally:
            writer.close()
    if b" 200 " not in status:
        raise OSError(f"{name} answers {status!r}")


def _own() -> ssl.SSLContext:
    context = ssl.create_default_context()
    # It is ourselves that we ask, by an address that no certificate names.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
