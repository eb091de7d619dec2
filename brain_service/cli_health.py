"""`brain health`: asks a running daemon how it is, over TCP or its Unix socket."""

import argparse
import http.client
import json
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from brain_service.cli_token import read_token
from brain_service.errors import UnauthorizedError, UnavailableError
from brain_service.terminal import printable, say, say_json, size_text, table_lines

__all__ = ["EXIT_CODES", "add_health_command", "check_lines"]

EXIT_CODES = {"pass": 0, "warn": 1, "fail": 2}

EXAMPLES = """\
exit code: 0 pass, 1 warn, 2 fail, or no daemon answers

examples:
  brain health
  brain health --url http://robot.local:8080 --token-file ~/robot.token
  brain health --uds /var/lib/continuon-brain/brain.sock --json
"""
_TIMEOUT_S = 5.0


def add_health_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `health` to the parser of `brain`."""
    summary = "Ask a running daemon how it is; exit code 0 pass, 1 warn, 2 fail."
    raw = argparse.RawDescriptionHelpFormatter
    added = commands.add_parser("health", help=summary, description=summary, epilog=EXAMPLES, formatter_class=raw)
    added.set_defaults(run=_health)
    where = added.add_mutually_exclusive_group()
    where.add_argument("--url", default="http://127.0.0.1:8080", help="(default: %(default)s)")
    where.add_argument("--uds", type=Path, help="the daemon's Unix socket, instead of an address")
    added.add_argument(
        "--token-file",
        type=Path,
        help="a file that begins with a token of scope read, for a daemon with tokens",
    )
    added.add_argument("--json", action="store_true", help="print the daemon's own document")


def check_lines(checks: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return checks, as their JSON form, as lines of a table, each fix below its check."""
    rows: list[tuple[str, ...]] = [("", "check", "value", "limit", "")]
    fixes: list[str] = [""]
    for name, check in checks:
        rows.append(
            (
                str(check["status"]),
                name,
                _value(check["observed_value"], check["observed_unit"]),
                _value(check.get("limit"), check["observed_unit"]),
                str(check.get("reason", check.get("output", ""))),
            )
        )
        fixes.append(str(check.get("fix", "")))
    lines = []
    for line, fix in zip(table_lines(rows), fixes, strict=True):
        lines += [line, f"      fix: {printable(fix)}"] if fix else [line]
    return lines


def _value(value: Any, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "bytes" and isinstance(value, int | float):
        return size_text(value)
    return f"{value} {unit}".rstrip() if isinstance(value, int | float) else str(value)


def _health(options: argparse.Namespace) -> int:
    document = _ask(options.url, options.uds, read_token(options.token_file))
    if options.json:
        say_json(document)
    else:
        flat = [(name, check) for name, checks in document["checks"].items() for check in checks]
        for line in check_lines(flat):
            say(line)
    return EXIT_CODES.get(document["status"], 2)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(str(self._path))


def _connection(url: str, uds: Path | None) -> http.client.HTTPConnection:
    if uds is not None:
        return _UnixConnection(uds)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UnavailableError(f"{url!r} is no address of a daemon; give one like http://127.0.0.1:8080")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname, parts.port, timeout=_TIMEOUT_S)


def _ask(url: str, uds: Path | None, token: str) -> dict[str, Any]:
    """Return the document of `/health`.

    Raises:
        UnavailableError: no daemon answers there, or something else does.
        UnauthorizedError: it wants a token, or another one.
    """
    where = str(uds) if uds is not None else f"{url.rstrip('/')}/health"
    try:
        path = "/health" if uds is not None else f"{urlsplit(url).path.rstrip('/')}/health"
        connection = _connection(url, uds)
        try:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(f"no daemon answers at {where}: {error}; start one with 'brain serve'") from error
    except ValueError as error:
        raise UnavailableError(f"{url} is no address of a daemon: {error}") from error
    if answer.status in (401, 403):
        given = "the token that was given is not enough" if token else "none was given"
        raise UnauthorizedError(
            f"the daemon at {where} wants a token with scope read, {given}; give one with --token-file"
        )
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("checks"), dict):
        raise UnavailableError(
            f"{where} answers {answer.status} {answer.reason}, something else than a daemon's health; check --url"
        )
    return document
