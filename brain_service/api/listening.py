"""The sockets that the daemon answers on: those that systemd holds open for it, else its own."""

import errno
import ipaddress
import logging
import os
import socket
import ssl
from pathlib import Path

from brain_service.api.service_manager import ServiceManager
from brain_service.errors import ConfigError
from brain_service.settings import Settings

__all__ = ["INHERITED_NAME", "address_of", "bind_sockets", "tls_context"]

log = logging.getLogger(__name__)

INHERITED_NAME = "continuon-brain"  # FileDescriptorName= of the socket unit
UNIX_PATH_LIMIT = 107  # sun_path holds 108 bytes with its NUL


def bind_sockets(settings: Settings, manager: ServiceManager, *, tokens: bool) -> list[socket.socket]:
    """Return a TCP socket and, where its path is usable, a Unix socket; inherited ones come first.

    Where systemd hands over a socket of a kind, its unit decides the address, and a setting that names another is
    an error rather than ignored. `tokens` tells whether requests need one.

    Raises:
        ConfigError: an address cannot be used or would let anyone in, or contradicts what is handed over.
    """
    inherited = _inherited(manager)
    try:
        for each in inherited:
            _hold_against(each, settings, tokens=tokens)
        families = {each.family for each in inherited}
        found = list(inherited)
        if not families & {socket.AF_INET, socket.AF_INET6}:
            found.append(_bind_tcp(settings, tokens=tokens))
        if socket.AF_UNIX not in families and (unix := _bind_unix(settings)) is not None:
            found.append(unix)
    except BaseException:
        # Raised again: whatever it is, no socket may stay open.
        for each in inherited:
            each.close()
        raise
    return found


def address_of(bound: socket.socket, *, tls: bool = False) -> str:
    """Return the URL of a TCP socket, or `unix:` and the path."""
    name = bound.getsockname()
    if not isinstance(name, tuple):
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{'https' if tls else 'http'}://{host}:{name[1]}"


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """Return what TCP connections are encrypted with; None where no certificate is set.

    Raises:
        ConfigError: a file cannot be read, is no PEM, has a passphrase, or key and certificate are no pair.
    """
    if settings.tls_certfile is None or settings.tls_keyfile is None:
        return None
    for name, path in (("tls_certfile", settings.tls_certfile), ("tls_keyfile", settings.tls_keyfile)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read {name} {path}: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A renegotiation costs the server more than the client.
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(settings.tls_certfile, settings.tls_keyfile, password=_no_passphrase)
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        why = "they are no pair" if mismatch else f"not PEM, or damaged ({error.reason or error})"
        raise ConfigError(
            f"tls_certfile {settings.tls_certfile} and tls_keyfile {settings.tls_keyfile}: {why}; give a PEM "
            "certificate (with its chain) and the key that it was made for"
        ) from error
    return context


def _no_passphrase() -> str:
    raise ConfigError("tls_keyfile has a passphrase, and nobody is there to type it; give a key without one")


def _inherited(manager: ServiceManager) -> list[socket.socket]:
    try:
        handed = manager.sockets()
    except OSError as error:
        raise ConfigError(f"systemd handed over a descriptor that is no socket: {error.strerror}") from error
    kept = []
    for name, each in handed:
        if name == INHERITED_NAME and each.type == socket.SOCK_STREAM:
            kept.append(each)
        else:
            log.warning("an inherited socket is not ours and is closed", extra={"socket": name})
            each.close()
    return kept


def _hold_against(inherited: socket.socket, settings: Settings, *, tokens: bool) -> None:
    """Hold what the socket unit decided against the settings that were given.

    Raises:
        ConfigError: they contradict each other, or the address needs tokens.
    """
    name = inherited.getsockname()
    if inherited.family == socket.AF_UNIX:
        wanted: tuple[str, ...] = ("uds",) if settings.uds not in (None, Path(str(name))) else ()
    else:
        _require_tokens(str(name[0]), str(name[0]), tokens=tokens)
        given = {"host", "port"} & settings.model_fields_set
        agrees = {"port": settings.port == name[1], "host": name[0] in _addresses(settings.host)}
        wanted = tuple(sorted(key for key in given if not agrees[key]))
    if wanted:
        said = ", ".join(f"{key} = {getattr(settings, key)}" for key in wanted)
        raise ConfigError(
            f"{said} is set, but continuon-brain.socket listens on {address_of(inherited)}; take the setting out "
            "and change the socket with 'systemctl edit continuon-brain.socket', or disable that unit"
        )


def _addresses(host: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except OSError:
        return set()


def _require_tokens(host: str, address: str, *, tokens: bool) -> None:
    if not tokens and not ipaddress.ip_address(address.split("%")[0]).is_loopback:
        raise ConfigError(
            f"refusing to listen on {host} without tokens: anyone on the network could drive the robot; "
            "set tokens_file, or use host 127.0.0.1"
        )


def _bind_tcp(settings: Settings, *, tokens: bool) -> socket.socket:
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"host {host!r} is no address of this machine: {error}") from error
    _require_tokens(host, str(address[0]), tokens=tokens)
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
