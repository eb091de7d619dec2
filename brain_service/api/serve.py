"""`brain serve`: binds the sockets, opens the services and runs uvicorn until SIGTERM or SIGINT."""

import asyncio
import contextlib
import errno
import fcntl
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn
import uvloop

from brain_service.api.app import create_app
from brain_service.api.connections import make_protocols
from brain_service.api.services import open_services
from brain_service.api.token_file import TokenFile
from brain_service.durable import make_directory
from brain_service.errors import ConfigError
from brain_service.log_secrets import know_tokens
from brain_service.settings import Settings

__all__ = ["serve"]

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
UNIX_PATH_LIMIT = 107  # sun_path holds 108 bytes with its NUL


def serve(settings: Settings) -> None:
    """Serve until asked to stop.

    Raises:
        ConfigError: the data directory cannot be used, is in use, or an address cannot be bound safely.
    """
    with contextlib.ExitStack() as stack:
        tokens = stack.enter_context(TokenFile(settings.tokens_file)) if settings.tokens_file else None
        if tokens is not None:
            # Not even by mistake, as part of an address for instance, does one get into the log.
            stack.callback(know_tokens(lambda: tokens.tokens.by_digest.keys()))
        stack.enter_context(_owned(settings.data_dir))
        sockets = [stack.enter_context(_bind_tcp(settings, tokens))]
        if (unix := _bind_unix(settings)) is not None:
            sockets.append(stack.enter_context(unix))
        uvloop.run(_run(settings, tokens, sockets))


class _Server(uvicorn.Server):
    """Leaves signals to `_run`: uvicorn would raise them again before the services are closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run(settings: Settings, tokens: TokenFile | None, sockets: list[socket.socket]) -> None:
    async with open_services(settings, tokens) as services:
        http, websocket = make_protocols(settings.http, services.arrivals)
        server = _Server(
            uvicorn.Config(
                create_app(services, tokens),
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
                timeout_graceful_shutdown=3,
            )
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, setattr, server, "should_exit", True)
        for bound in sockets:
            log.info("listening", extra={"address": _address(bound)})
        await server.serve(sockets=sockets)
    log.info("stopped")


def _address(bound: socket.socket) -> str:
    name = bound.getsockname()
    return f"http://{name[0]}:{name[1]}" if isinstance(name, tuple) else f"unix:{name}"


@contextlib.contextmanager
def _owned(data_dir: Path) -> Iterator[None]:
    """Create the data directory, prove that it can be written and lock it against a second daemon."""
    try:
        make_directory(data_dir)
        fd = os.open(data_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o640)
    except OSError as error:
        raise ConfigError(
            f"cannot write to data_dir {data_dir}: {error.strerror}; choose another with --data-dir"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConfigError(
            f"another daemon uses data_dir {data_dir}; stop it or choose another with --data-dir"
        ) from error
    finally:
        os.close(fd)


def _bind_tcp(settings: Settings, tokens: TokenFile | None) -> socket.socket:
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"host {host!r} is no address of this machine: {error}") from error
    if tokens is None and not ipaddress.ip_address(str(address[0]).split("%")[0]).is_loopback:
        raise ConfigError(
            f"refusing to listen on {host} without tokens: anyone on the network could drive the robot; "
            "set tokens_file, or use host 127.0.0.1"
        )
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} on {host} is in use; choose another with --port, or find its owner with "
                f"'ss -ltnp sport = :{port}'"
            ) from error
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return bound


def _bind_unix(settings: Settings) -> socket.socket | None:
    path = settings.uds or settings.data_dir / "brain.sock"
    if len(os.fsencode(path)) > UNIX_PATH_LIMIT:
        if settings.uds is None:
            log.warning("no Unix socket: the path is too long; set uds", extra={"path": str(path)})
            return None
        raise ConfigError(f"uds {path} is longer than {UNIX_PATH_LIMIT} bytes; choose a shorter path")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The data directory's lock is held: a socket file that stands there has no living owner.
        path.unlink(missing_ok=True)
        bound.bind(str(path))
        path.chmod(0o660)
    except OSError as error:
        bound.close()
        if settings.uds is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
            log.warning("no Unix socket: the disk is full", extra={"path": str(path)})
            return None
        raise ConfigError(f"cannot listen on uds {path}: {error.strerror}") from error
    return bound
