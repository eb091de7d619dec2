"""`brain serve`: opens the sockets and the services and runs uvicorn until SIGTERM or SIGINT."""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvloop

from brain_service.api.app import create_app
from brain_service.api.connections import make_protocols
from brain_service.api.listening import address_of, bind_sockets, tls_context
from brain_service.api.notify import Notifier
from brain_service.api.server import Server, answers, make_server
from brain_service.api.service_manager import ServiceManager
from brain_service.api.services import Services, open_services
from brain_service.api.starts import DaemonStarts
from brain_service.api.token_file import TokenFile
from brain_service.api.watchdog import extending, feed_watchdog
from brain_service.audit import AuditLog
from brain_service.durable import make_directory
from brain_service.errors import ConfigError
from brain_service.log_secrets import know_tokens
from brain_service.settings import Settings

__all__ = ["serve"]

log = logging.getLogger(__name__)

START_LIMIT_S = 300.0  # a card that is checked and a catalogue that is built anew take minutes, not more
STOP_LIMIT_S = 60.0
STUCK_S = 60.0  # what has not moved for this long, and waits for no medium, is a defect that a restart mends


@dataclass(frozen=True)
class _Daemon:
    """What was made before the event loop."""

    settings: Settings
    sockets: list[socket.socket]
    tls: ssl.SSLContext | None
    tokens: TokenFile | None
    audit: AuditLog
    notifier: Notifier
    watchdog_s: float | None
    starts: DaemonStarts
    safe_mode: str


def serve(settings: Settings) -> None:
    """Serve until asked to stop.

    Raises:
        ConfigError: the data directory cannot be used, is in use, an address cannot be bound safely, or the
            certificate cannot be used.
    """
    manager = ServiceManager.take()
    with contextlib.ExitStack() as stack:
        notifier = Notifier(manager.notify_socket)
        stack.callback(notifier.close)
        try:
            daemon = _prepare(settings, manager, notifier, stack)
        except ConfigError as error:
            notifier.status(f"refuses to start: {error.detail}")
            raise
        uvloop.run(_run(daemon))
        daemon.starts.stopped()


def _prepare(
    settings: Settings, manager: ServiceManager, notifier: Notifier, stack: contextlib.ExitStack
) -> _Daemon:
    tls = tls_context(settings)
    tokens = TokenFile(settings.tokens_file) if settings.tokens_file else None
    stack.enter_context(_owned(settings.data_dir))
    audit = AuditLog(settings.data_dir)
    if tokens is not None:
        tokens.on_change = audit.note_tokens
        stack.enter_context(tokens)
        # Not even by mistake, as part of an address for instance, does one get into the log.
        stack.callback(know_tokens(lambda: tokens.tokens.by_digest.keys()))
    sockets = bind_sockets(settings, manager, tokens=tokens is not None)
    for each in sockets:
        stack.enter_context(each)
    # Only now: what is refused above is no crash.
    starts = DaemonStarts(settings.data_dir, settings.inference.max_start_crashes)
    if safe_mode := starts.begin():
        log.error(safe_mode)
    return _Daemon(settings, sockets, tls, tokens, audit, notifier, manager.watchdog_s, starts, safe_mode)


async def _run(daemon: _Daemon) -> None:
    notifier = daemon.notifier
    with contextlib.ExitStack() as asking:
        asking.enter_context(extending(notifier, START_LIMIT_S))
        async with open_services(
            daemon.settings, daemon.tokens, audit=daemon.audit, safe_mode=daemon.safe_mode
        ) as services:
            protocols = make_protocols(daemon.settings.http, services.arrivals)
            server = make_server(create_app(services, daemon.tokens), protocols, daemon.settings, daemon.tls)

            def stop() -> None:
                server.should_exit = True
                if not server.stopping.is_set():
                    server.stopping.set()
                    notifier.stopping()
                    asking.enter_context(extending(notifier, STOP_LIMIT_S))

            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop)
            for bound in daemon.sockets:
                log.info("listening", extra={"address": address_of(bound, tls=daemon.tls is not None)})
            living = asyncio.create_task(_live(daemon, services, server, asking))
            try:
                await server.serve(sockets=daemon.sockets)
            finally:
                living.cancel()
                await asyncio.gather(living, return_exceptions=True)
    log.info("stopped")


async def _live(daemon: _Daemon, services: Services, server: Server, asking: contextlib.ExitStack) -> None:
    """Once every socket answers, say so; then show the service manager that the daemon moves, until it stops."""
    await server.listening.wait()
    try:
        for bound in daemon.sockets:
            await answers(bound, tls=daemon.tls is not None)
    except OSError as error:  # TimeoutError is one
        # Without READY the service manager starts the daemon again when its time is over.
        log.error("a socket of our own does not answer", extra={"reason": str(error) or "no answer within 30 s"})
        asking.close()
        return
    if server.stopping.is_set():
        return
    asking.close()
    notifier = daemon.notifier
    notifier.ready(_status(daemon, services))
    steady = asyncio.get_running_loop().call_later(
        daemon.settings.inference.healthy_after_s,
        lambda: asyncio.get_running_loop().run_in_executor(None, daemon.starts.steady),
    )

    def obstacle() -> str:
        return services.store.stuck(STUCK_S) or services.router.stuck(STUCK_S)

    feeding = asyncio.create_task(
        feed_watchdog(notifier, daemon.watchdog_s, obstacle, lambda: _status(daemon, services))
    )
    try:
        await server.stopping.wait()
    finally:
        feeding.cancel()
        steady.cancel()


def _status(daemon: _Daemon, services: Services) -> str:
    """Say in a line how the daemon is; from memory."""
    if daemon.safe_mode:
        return daemon.safe_mode
    inference = services.router.status()
    if inference["state"] == "serving":
        return f"capture is up; model {inference['active_model']} on {inference['backend']}"
    if inference["state"] == "no-model":
        return "capture is up; no model yet"
    return f"capture is up; the model is {inference['state']}" + (
        f": {inference['error']}" if inference["error"] else ""
    )


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
