"""Who may ask for what, decided before any route runs: bearer tokens with scopes, and no foreign web pages.

The tokens file has one token a line: `<token> <scope>[,<scope>...] # <name>`, scopes `control`, `operate`, `read`.
`#` starts a comment; after a token it is the name that the audit log knows it by. `operate` and `control` include
`read`. Without a file every request is allowed, and the daemon then refuses to bind anywhere but loopback and its
Unix socket. A token comes in the `Authorization` header only, as `Bearer <token>` or, from openpi's clients,
`Api-Key <token>`: what stands in an address ends up in histories and logs.

A browser names the page that asks in `Origin`, and in `Sec-Fetch-Site` how far it is from here. A page of another
host may not change anything here nor open a WebSocket (they are not bound by CORS): 403; nor may a form, whose
media types need no permission: 415. Robots and curl send neither header and are not concerned. Without tokens
nothing is read or changed under a foreign name, or a name that was made to resolve to this machine would do for
one of its own (DNS rebinding): `Host` must be an address, a local name, or one that this machine is known by.
"""

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from brain_service.api.problems import problem_response, refuse_websocket
from brain_service.api.stream import AUTHORISED
from brain_service.dashboard import ASSET_PATHS
from brain_service.errors import BrainError, ConfigError, ForbiddenError, UnauthorizedError, UnsupportedMediaError

__all__ = [
    "ACTOR",
    "GRANTED",
    "Guard",
    "TokenSource",
    "Tokens",
    "check_host",
    "check_origin",
    "is_operators",
    "scope_for",
]

ACTOR = "brain.actor"
"""Where the guard puts the name of the token that a request came with, for the audit log."""

GRANTED = "brain_service.granted"
"""Scope member that the guard sets where tokens are asked for: the scopes of this request's token."""

STATUS_STREAM = "/status/stream"
SCOPES = ("control", "operate", "read")
OPEN_PATHS = frozenset({"/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready"})
# The empty one is `/` itself, where openpi's clients connect.
CONTROL_ROOTS = frozenset({"", "episodes", "sessions", "infer", "v2"})
SCHEMES = ("bearer", "api-key")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# What a form sends without asking; multipart, which images come in, is left to the check of the origin.
FORM_TYPES = frozenset({b"text/plain", b"application/x-www-form-urlencoded"})
MAX_KNOWN_HOSTS = 64
_LABEL = re.compile(r"[a-z0-9_-]+")
LOCAL_SUFFIXES = (".local", ".lan", ".internal", ".home.arpa")


@dataclass(frozen=True)
class Tokens:
    """Known tokens as SHA-256 digests, each with its scopes; the tokens themselves are not kept."""

    by_digest: Mapping[bytes, frozenset[str]] = field(repr=False)
    names: Mapping[bytes, str] = field(default_factory=dict, repr=False)

    @staticmethod
    def read(path: Path) -> "Tokens":
        """Parse the tokens file.

        Raises:
            ConfigError: unreadable, empty, a token that is short or not ASCII, or an unknown scope; the line is
                named, never shown.
        """
        try:
            # Some editors begin a file with a byte order mark; it is no part of the first token.
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except IsADirectoryError as error:
            raise ConfigError(
                f"tokens_file {path} is a directory; name the file, or 'none' (an empty BRAIN_TOKENS_FILE is the "
                "working directory)"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(f"cannot read tokens_file {path}: {reason}") from error
        found: dict[bytes, frozenset[str]] = {}
        names: dict[bytes, str] = {}
        for number, line in enumerate(lines, 1):
            stated, _, comment = line.partition("#")
            words = stated.split()
            if not words:
                continue
            scopes = frozenset(words[1].split(",")) if len(words) == 2 else frozenset()
            if not scopes or not scopes <= set(SCOPES) or len(words[0]) < 16:
                raise ConfigError(
                    f"{path}, line {number}: expected '<token of 16 characters or more> <scope>[,<scope>]' "
                    f"with scopes among {', '.join(SCOPES)}"
                )
            if not (words[0].isascii() and words[0].isprintable()):
                raise ConfigError(
                    f"{path}, line {number}: a token is letters, digits and signs of ASCII, since no HTTP header "
                    "carries others the same way everywhere; 'openssl rand -hex 32' makes one"
                )
            digest = _digest(words[0])
            found[digest] = scopes
            names[digest] = " ".join(comment.split()) or f"token of line {number}"
        if not found:
            raise ConfigError(f"{path} holds no token; add a line '<token> control,operate,read'")
        return Tokens(found, names)

    def check(self, authorization: str, needed: str) -> frozenset[str]:
        """Hold an `Authorization` header against the scope that a request needs; return all that it has.

        Every known token is compared, each in constant time: how long it takes tells nothing about any of them.

        Raises:
            UnauthorizedError: no token, or an unknown one.
            ForbiddenError: the token is known and lacks the scope.
        """
        kind, _, token = authorization.partition(" ")
        if kind.lower() not in SCHEMES or not token.strip():
            raise UnauthorizedError("send 'Authorization: Bearer <token>'")
        digest = _digest(token.strip())
        scopes: frozenset[str] | None = None
        for known, granted in self.by_digest.items():
            if hmac.compare_digest(known, digest):
                scopes = granted
        if scopes is None:
            raise UnauthorizedError("this token is not in the tokens file")
        if needed not in scopes and needed != "read":
            raise ForbiddenError(
                f"this needs a token with scope {needed!r}, yours has {', '.join(sorted(scopes))}"
            )
        return scopes

    def name(self, authorization: str) -> str:
        """Return the name of the token in an `Authorization` header, whatever its scopes; nothing if unknown.

        It takes no part in letting anyone in.
        """
        return self.names.get(_digest(authorization.partition(" ")[2].strip()), "")


class TokenSource(Protocol):
    """Whoever knows the tokens that hold at this moment."""

    @property
    def tokens(self) -> Tokens:
        """The tokens; they may change from one request to the next."""


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def scope_for(method: str, path: str) -> str | None:
    """Return the scope that a request needs; None where no token is asked for.

    A WebSocket has method GET and needs what a POST to its path would.
    """
    if path in OPEN_PATHS or (path in ASSET_PATHS and method in SAFE_METHODS):
        return None
    root = path.strip("/").split("/")[0]
    if method in SAFE_METHODS:
        # Who did what is for those who may do it.
        return "operate" if root == "audit" else "read"
    # What deletes a recording is an operator's act; ending a session is the controller's own.
    if method == "DELETE" and root == "episodes":
        return "operate"
    return "control" if root in CONTROL_ROOTS else "operate"


def is_operators(method: str, path: str) -> bool:
    """Tell whether a request is an operator's act: it changes something and needs the scope `operate`."""
    return method not in SAFE_METHODS and scope_for(method, path) == "operate"


def check_host(host: str, known: Collection[str] = ()) -> None:
    """Refuse a request for a foreign name: `Host` must be an IP address, a local name, or one of `known`.

    Raises:
        ForbiddenError: it is another one.
    """
    try:
        name = urlsplit(f"//{host}").hostname or "."
    except ValueError:
        name = "."  # the name of no machine
    if name not in known and not _is_local(name):
        raise ForbiddenError(
            f"this daemon is not known as {host[:200]!r}; use its address or its local name, or set tokens_file "
            "and send a token"
        )


def check_origin(origin: str, host: str, *, any_name: bool, known: Collection[str] = ()) -> None:
    """Refuse a web page of another host; `host` is the request's own `Host`, port included.

    `any_name` False: `host` must be an IP address, `localhost`, a single label, a name of a local network, or one
    of `known`.

    Raises:
        ForbiddenError: the page came from elsewhere.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        foreign = urlsplit(origin).netloc.lower() != host.lower() or not host
    except ValueError:
        name, foreign = "", True
    if foreign or not (any_name or name in known or _is_local(name)):
        raise ForbiddenError(
            f"a web page of {origin[:200]!r} may not do this; open the page from this daemon itself"
        )


def _is_local(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return _LABEL.fullmatch(name) is not None or name.endswith(LOCAL_SUFFIXES) or name.endswith(".localhost")
    return True


class Guard:
    """ASGI middleware that answers 401 or 403 itself and passes every other connection on."""

    def __init__(self, app: ASGIApp, source: TokenSource | None = None, hosts: Collection[str] = ()) -> None:
        """`hosts` are names that this machine is known by, beside its own."""
        self.app = app
        self._source = source
        self._names = frozenset(name.lower() for name in (*hosts, socket.gethostname()))
        self._good_hosts: set[bytes] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        # A WebSocket begins as a GET and then changes things as a POST does.
        method = scope["method"] if kind == "http" else "POST"
        headers = dict(scope["headers"])
        try:
            if self._source is None and headers.get(b"host") not in self._good_hosts:
                self._check_host(scope, headers)
            if method not in SAFE_METHODS:
                self._check_page(headers)
            if self._source is not None and (needed := scope_for(method, scope["path"])):
                given = headers.get(b"authorization", b"").decode("latin-1")
                tokens = self._source.tokens
                # Also of one that is refused for its scopes: the audit log tells whose it was.
                scope[ACTOR] = tokens.name(given)
                scope[GRANTED] = tokens.check(given, needed)
                if kind == "websocket" or scope["path"] == STATUS_STREAM:
                    scope[AUTHORISED] = _StillAllowed(self._source, given, needed)
        except BrainError as error:
            if kind == "http":
                await problem_response(error.problem(), scope["path"])(scope, receive, send)
            else:
                await refuse_websocket(error, receive, send)
            return
        await self.app(scope, receive, send)

    def _check_host(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        """Refuse a foreign `Host`, but on the Unix socket and for what says only that the daemon lives."""
        host, server = headers.get(b"host"), scope.get("server")
        unix = server is None or server[1] is None
        if host is None or unix or scope["path"] in OPEN_PATHS:
            return
        check_host(host.decode("latin-1"), self._names)
        if len(self._good_hosts) < MAX_KNOWN_HOSTS:
            self._good_hosts.add(host)

    def _check_page(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse a page of another host, and a form, where a browser asks for a change."""
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        if origin is None and site is None:
            return
        if origin is not None:
            host = headers.get(b"host", b"").decode("latin-1")
            check_origin(origin.decode("latin-1"), host, any_name=self._source is not None, known=self._names)
        if site not in (None, b"same-origin", b"none"):
            raise ForbiddenError("a page of another site may not do this; open the page from this daemon itself")
        if headers.get(b"content-type", b"").split(b";")[0].strip().lower() in FORM_TYPES:
            raise UnsupportedMediaError("a web page's form may not do this; send 'Content-Type: application/json'")


class _StillAllowed:
    """Tells whether the token that opened a connection still holds; asks again only when the file changed."""

    def __init__(self, source: TokenSource, authorization: str, needed: str) -> None:
        self._source = source
        self._authorization = authorization
        self._needed = needed
        self._checked = source.tokens

    def __call__(self) -> bool:
        tokens = self._source.tokens
        if tokens is not self._checked:
            try:
                tokens.check(self._authorization, self._needed)
            except BrainError:
                return False
            self._checked = tokens
        return True
