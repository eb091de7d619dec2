"""Bearer tokens with scopes, checked before any route runs.

The tokens file has one token a line: `<token> <scope>[,<scope>...]`, scopes `control`, `operate`, `read`;
`#` starts a comment. `operate` and `control` include `read`. Without a file every request is allowed, and the
daemon then refuses to bind anywhere but loopback and its Unix socket.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from brain_service.api.problems import problem_response
from brain_service.errors import BrainError, ConfigError, ForbiddenError, UnauthorizedError

__all__ = ["Guard", "Tokens", "scope_for"]

SCOPES = ("control", "operate", "read")
OPEN_PATHS = frozenset({"/livez", "/readyz"})
CONTROL_ROOTS = frozenset({"episodes", "sessions", "infer"})


@dataclass(frozen=True)
class Tokens:
    """Known tokens as SHA-256 digests, each with its scopes; the tokens themselves are not kept."""

    by_digest: Mapping[bytes, frozenset[str]] = field(repr=False)

    @staticmethod
    def read(path: Path) -> "Tokens":
        """Parse the tokens file.

        Raises:
            ConfigError: unreadable, empty, a short token or an unknown scope; the line is named, never shown.
        """
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read tokens_file {path}: {error}") from error
        found: dict[bytes, frozenset[str]] = {}
        for number, line in enumerate(lines, 1):
            words = line.split("#", 1)[0].split()
            if not words:
                continue
            scopes = frozenset(words[1].split(",")) if len(words) == 2 else frozenset()
            if not scopes or not scopes <= set(SCOPES) or len(words[0]) < 16:
                raise ConfigError(
                    f"{path}, line {number}: expected '<token of 16 characters or more> <scope>[,<scope>]' "
                    f"with scopes among {', '.join(SCOPES)}"
                )
            found[_digest(words[0])] = scopes
        if not found:
            raise ConfigError(f"{path} holds no token; add a line '<token> control,operate,read'")
        return Tokens(found)

    def check(self, authorization: str, needed: str) -> None:
        """Hold an `Authorization` header against the scope that a request needs.

        Raises:
            UnauthorizedError: no bearer token, or an unknown one.
            ForbiddenError: the token is known and lacks the scope.
        """
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer" or not token:
            raise UnauthorizedError("send 'Authorization: Bearer <token>'")
        digest = _digest(token.strip())
        scopes = next((s for known, s in self.by_digest.items() if hmac.compare_digest(known, digest)), None)
        if scopes is None:
            raise UnauthorizedError("this token is not in the tokens file")
        if needed not in scopes and needed != "read":
            raise ForbiddenError(
                f"this needs a token with scope {needed!r}, yours has {', '.join(sorted(scopes))}"
            )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def scope_for(method: str, path: str) -> str | None:
    """Return the scope that a request needs; None where no token is asked for."""
    if path in OPEN_PATHS:
        return None
    root = path.strip("/").split("/")[0]
    if method in ("GET", "HEAD", "OPTIONS"):
        return "read"
    # What deletes a recording is an operator's act; ending a session is the controller's own.
    if method == "DELETE" and root == "episodes":
        return "operate"
    return "control" if root in CONTROL_ROOTS else "operate"


class Guard:
    """ASGI middleware that answers 401 or 403 itself and passes every other request on."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self.app = app
        self.tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "http" and (needed := scope_for(scope["method"], scope["path"])):
            headers = dict(scope["headers"])
            try:
                self.tokens.check(headers.get(b"authorization", b"").decode("latin-1"), needed)
            except BrainError as error:
                await problem_response(error.problem())(scope, receive, send)
                return
        await self.app(scope, receive, send)
