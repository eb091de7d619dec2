"""Scopes: which request needs which, and what a token may do."""

from pathlib import Path

import pytest

from brain_service.api.auth import Tokens, scope_for
from brain_service.errors import ForbiddenError, UnauthorizedError

NEEDED = [
    ("GET", "/livez", None),
    ("GET", "/readyz", None),
    ("GET", "/health", "read"),
    ("GET", "/episodes/x/steps", "read"),
    ("POST", "/episodes", "control"),
    ("POST", "/episodes/x/steps", "control"),
    ("DELETE", "/episodes/x", "operate"),
    ("POST", "/infer", "control"),
    ("POST", "/sessions/x/reset", "control"),
    ("DELETE", "/sessions/x", "control"),
    ("POST", "/pipeline", "operate"),
    ("DELETE", "/jobs/x", "operate"),
    ("POST", "/models/x/activate", "operate"),
    ("POST", "//infer", "control"),
]


@pytest.mark.parametrize(("method", "path", "scope"), NEEDED)
def test_scopes(method: str, path: str, scope: str | None) -> None:
    assert scope_for(method, path) == scope


def test_a_token_is_known_by_its_digest_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("0123456789abcdef control,read\n\n# comment\nfedcba9876543210 read # eyes\n")
    tokens = Tokens.read(path)
    assert "0123456789abcdef" not in repr(tokens)
    tokens.check("Bearer 0123456789abcdef", "control")
    tokens.check("bearer fedcba9876543210", "read")
    tokens.check("Bearer 0123456789abcdef", "read")
    with pytest.raises(ForbiddenError, match="operate"):
        tokens.check("Bearer 0123456789abcdef", "operate")
    for header in ("", "Bearer", "Bearer ", "Basic 0123456789abcdef", "Bearer 0123456789abcdeg"):
        with pytest.raises(UnauthorizedError):
            tokens.check(header, "read")
