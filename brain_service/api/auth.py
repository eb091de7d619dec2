"""Who may ask for what, decided before any route runs: bearer tokens with scopes, and no foreign web pages.

The tokens file has one token a line: `<token> <scope>[,<scope>...] # <name>`, scopes `control`, `operate`, `read`.
`#` starts a comment; after a token it is the name that the audit log knows it by. `operate` and `control` include
`read`. Without a file every request is allowed, and the daemon then refuses to bind anywhere but loopback and its
Unix socket. A token comes in the `Authorization` header only, as `Bearer <token>` or, from openpi's clients,
`Api-Key <token>`: what stands in an address ends up in histories and logs.

A browser names the page that asks in `Origin`. A page of another host may not change anything here nor open a
WebSocket (they are not bound by CORS): 403. Without tokens the page must also have come from an address or a
local name, or a foreign name that resolves to this machine would pass (DNS rebinding).
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from brain_service.api.problems import problem_response, refuse_websocket
from brain_service.api.stream import AUTHORISED
from brain_service.errors import BrainError, ConfigError, ForbiddenError, UnauthorizedError

__all__ = ["ACTOR", "Guard", "TokenSource", "Tokens", "check_origin", "is_operators", "scope_for"]

ACTOR = "brain.actor"
"""Where the guard puts the name of the token that a request came with, for the audit log."""

SCOPES = ("control", "operate", "read")
OPEN_PATHS = frozenset({"/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready"})
# The empty one is `/` itself, where openpi's clients connect.
CONTROL_ROOTS = frozenset({"", "episodes", "sessions", "infer", "v2"})
SCHEMES = ("bearer", "api-key")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
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

    def check(self, authorization: str, needed: str) -> None:
        """Hold an `Authorization` header against the scope that a request needs.

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
    if path in OPEN_PATHS:
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


def check_origin(origin: str, host: str, *, any_name: bool) -> None:
    """Refuse a web page of another host; `host` is the request's own `Host`, port included.

    `any_name` False: `host` must be an IP address, `localhost`, a single label or a name of a local network.

    Raises:
        ForbiddenError: the page came from elsewhere.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        foreign = urlsplit(origin).netloc.lower() != host.lower() or not host
    except ValueError:
        name, foreign = "", True
    if foreign or not (any_name or _is_local(name)):
        raise ForbiddenError(
            f"a web page of {origin[:200]!r} may not do this; open the page from this daemon itself"
        )


def _is_local(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(LOCAL_SUFFIXES) or name.endswith(".localhost")
    return True


class Guard:
    """ASGI middleware that answers 401 or 403 itself and passes every other connection on."""

    def __init__(self, app: ASGIApp, source: TokenSource | None = None) -> None:
        self.app = app
        self._source = source

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
            if method not in SAFE_METHODS and (origin := headers.get(b"origin")) is not None:
                host = headers.get(b"host", b"").decode("latin-1")
                check_origin(origin.decode("latin-1"), host, any_name=self._source is not None)
            if self._source is not None and (needed := scope_for(method, scope["path"])):
                given = headers.get(b"authorization", b"").decode("latin-1")
                tokens = self._source.tokens
                # Also of one that is refused for its scopes: the audit log tells whose it was.
                scope[ACTOR] = tokens.name(given)
                tokens.check(given, needed)
                if kind == "websocket":
                    scope[AUTHORISED] = _StillAllowed(self._source, given, needed)
        except BrainError as error:
            if kind == "http":
                await problem_response(error.problem(), scope["path"])(scope, receive, send)
            else:
                await refuse_websocket(error, receive, send)
            return
        await self.app(scope, receive, send)


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
