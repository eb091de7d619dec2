"""Where the daemon is and how to speak to it: a URL or a Unix socket, a token, timeouts."""

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import connect, unix_connect
from websockets.sync import client as sync_client
from websockets.sync.client import ClientConnection

__all__ = ["DEFAULT_URL", "Endpoint"]

DEFAULT_URL = "http://127.0.0.1:8080"

# At debug level the library logs the headers of the handshake, and the token stands in them.
_STREAM_LOG = logging.getLogger("brain_service.client.websocket")
_STREAM_LOG.setLevel(logging.INFO)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The daemon's address. With `uds` the connection goes to that Unix socket and the URL's host is a name only.

    `timeout_s` bounds each wait for the network: connect, send, first byte of the answer.
    """

    base_url: str = DEFAULT_URL
    uds: Path | None = None
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 10.0

    def http(self) -> httpx.Client:
        """Return a keep-alive client. Proxies and netrc of the environment are not for a robot's own daemon."""
        return httpx.Client(transport=httpx.HTTPTransport(uds=self._uds, retries=0), **self._shared())

    def async_http(self) -> httpx.AsyncClient:
        """Return the same for an event loop."""
        return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=self._uds, retries=0), **self._shared())

    def stream(self, path: str) -> connect:
        """Return the WebSocket connection to `path`, to be entered as an async context."""
        if self._uds is not None:
            return unix_connect(self._uds, self._stream_url(path), **self._stream_options())
        return connect(self._stream_url(path), proxy=None, **self._stream_options())

    def sync_stream(self, path: str) -> AbstractContextManager[ClientConnection]:
        """Return the same for a thread, to be entered as a context."""
        found: AbstractContextManager[ClientConnection]
        if self._uds is not None:
            found = sync_client.unix_connect(str(self._uds), self._stream_url(path), **self._stream_options())
        else:
            found = sync_client.connect(self._stream_url(path), proxy=None, **self._stream_options())
        return found

    def _stream_url(self, path: str) -> str:
        return "ws" + self.base_url.removeprefix("http").rstrip("/") + path

    def _stream_options(self) -> dict[str, Any]:
        return {
            "additional_headers": self._headers(),
            "compression": None,  # float32 values hardly shrink, and the robot's cores have other work
            "open_timeout": self.timeout_s,
            "ping_interval": self.timeout_s / 2,
            "ping_timeout": self.timeout_s,
            "close_timeout": 1.0,
            "user_agent_header": None,
            "logger": _STREAM_LOG,
        }

    @property
    def _uds(self) -> str | None:
        return None if self.uds is None else str(self.uds)

    def _headers(self) -> dict[str, str]:
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def _shared(self) -> dict[str, Any]:
        return {
            "base_url": self.base_url,
            "headers": self._headers(),
            "timeout": self.timeout_s,
            "trust_env": False,
            "follow_redirects": False,
        }
