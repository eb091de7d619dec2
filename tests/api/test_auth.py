"""Who may ask for what: scopes, pages of other hosts, tokens that rotate, and secrets that stay secret."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from brain_service.api.auth import Tokens, check_origin, scope_for
from brain_service.errors import ConfigError, ForbiddenError, UnauthorizedError
from tests.api.wire import step_bytes
from tests.processes import Daemon, running_daemon

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
    ("POST", "/sanity-check", "operate"),
    ("DELETE", "/jobs/x", "operate"),
    ("POST", "/models/x/activate", "operate"),
    ("POST", "//infer", "control"),
    ("POST", "/", "control"),  # openpi's WebSocket
    ("GET", "/healthz", None),
    ("GET", "/v2/health/live", None),
    ("GET", "/v2/health/ready", None),
    ("GET", "/v2", "read"),
    ("GET", "/v2/models/brain", "read"),
    ("POST", "/v2/models/brain/infer", "control"),
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
    tokens.check("Api-Key 0123456789abcdef", "control")
    with pytest.raises(ForbiddenError, match="operate"):
        tokens.check("Bearer 0123456789abcdef", "operate")
    for header in ("", "Bearer", "Bearer ", "Basic 0123456789abcdef", "Api-Key", "Bearer 0123456789abcdeg"):
        with pytest.raises(UnauthorizedError):
            tokens.check(header, "read")


def test_a_token_outside_ascii_is_refused_by_its_line_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    for token in ("пароль-0123456789", "naïve-token-0123456789", "zero\u200bwidth-0123456789"):
        path.write_text(f"{CONTROL} control\n{token} control\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=r"line 2: .*ASCII") as refused:
            Tokens.read(path)
        assert "0123456789" not in refused.value.detail


def test_a_byte_order_mark_is_no_part_of_a_token(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"{CONTROL} control\n", encoding="utf-8-sig")
    Tokens.read(path).check(f"Bearer {CONTROL}", "control")
    with pytest.raises(UnauthorizedError):
        Tokens.read(path).check("Bearer " + "?" * len(CONTROL), "control")


def test_a_directory_is_no_tokens_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="BRAIN_TOKENS_FILE"):
        Tokens.read(tmp_path)


def test_every_known_token_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("".join(f"token-number-{n:08d} {'control' if n % 2 else 'read'}\n" for n in range(50)))
    tokens = Tokens.read(path)
    for number in range(50):
        tokens.check(f"Bearer token-number-{number:08d}", "read")
    with pytest.raises(ForbiddenError):
        tokens.check("Bearer token-number-00000000", "control")
    tokens.check("Bearer token-number-00000049", "control")


OWN = [
    ("http://127.0.0.1:8080", "127.0.0.1:8080"),
    ("http://localhost:8080", "localhost:8080"),
    ("http://[::1]:8080", "[::1]:8080"),
    ("http://pi5.local", "pi5.local"),
    ("http://robot:8080", "ROBOT:8080"),
]
FOREIGN = [
    ("http://evil.example", "127.0.0.1:8080"),
    ("null", "127.0.0.1:8080"),
    ("", "127.0.0.1:8080"),
    ("http://127.0.0.1:8081", "127.0.0.1:8080"),
    ("http://127.0.0.1:8080.evil.example", "127.0.0.1:8080"),
    ("http://[", "127.0.0.1:8080"),
    ("http://", ""),
]


@pytest.mark.parametrize(("origin", "host"), OWN)
def test_a_page_of_the_daemon_itself_may_ask(origin: str, host: str) -> None:
    check_origin(origin, host, any_name=False)


@pytest.mark.parametrize("any_name", [False, True])
@pytest.mark.parametrize(("origin", "host"), FOREIGN)
def test_a_page_of_another_host_may_not(origin: str, host: str, any_name: bool) -> None:
    with pytest.raises(ForbiddenError):
        check_origin(origin, host, any_name=any_name)


def test_a_foreign_name_that_resolves_to_us_needs_a_token() -> None:
    with pytest.raises(ForbiddenError):
        check_origin("http://evil.example:8080", "evil.example:8080", any_name=False)
    check_origin("http://brain.factory.example", "brain.factory.example", any_name=True)


CONTROL, READ, NEXT = "control-token-0123456789", "read-token-0123456789ab", "next-token-0123456789ab"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[Daemon, Path]]:
    """A daemon with tokens at log level debug, and its tokens file."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{CONTROL} control\n{READ} read\n")
    tokens.chmod(0o600)
    arguments = ("--tokens-file", str(tokens), "--log-level", "debug")
    with running_daemon(tmp_path / "brain", *arguments) as daemon:
        yield daemon, tokens


def get(daemon: Daemon, path: str, token: str) -> httpx.Response:
    return httpx.get(f"{daemon.url}{path}", headers={"Authorization": f"Bearer {token}"})


def wait_for_status(daemon: Daemon, token: str, status: int) -> None:
    """Ask until the daemon answers with `status`: a change of the file counts within about a second."""
    give_up_s = time.monotonic() + 20
    while get(daemon, "/episodes", token).status_code != status:
        assert time.monotonic() < give_up_s, f"still not {status}"
        time.sleep(0.05)


def tokens_check(daemon: Daemon, token: str) -> dict[str, Any]:
    check: dict[str, Any] = get(daemon, "/health", token).json()["checks"]["tokens"][0]
    return check


def wait_for_check(daemon: Daemon, token: str, status: str) -> str:
    """Ask until the tokens check is of `status`, and return what it says."""
    give_up_s = time.monotonic() + 20
    while (check := tokens_check(daemon, token))["status"] != status:
        assert time.monotonic() < give_up_s, f"still {check}"
        time.sleep(0.05)
    return str(check.get("output", ""))


def test_tokens_rotate_without_a_restart(guarded: tuple[Daemon, Path]) -> None:
    daemon, tokens = guarded
    headers = {"Authorization": f"Bearer {CONTROL}"}
    episode = httpx.post(f"{daemon.url}/episodes", json={}, headers=headers).json()["episode_id"]
    url = f"ws://127.0.0.1:{daemon.port}/episodes/{episode}/stream"
    with connect(url, additional_headers=headers) as stream:
        stream.send(step_bytes(0).decode())
        assert json.loads(stream.recv(timeout=5))["step_index"] == 0

        tokens.write_text("not a token line\n")  # half an edit: what held goes on to hold
        assert "line 1" in wait_for_check(daemon, READ, "warn")
        assert get(daemon, "/episodes", CONTROL).status_code == 200
        stream.send(step_bytes(1).decode())

        tokens.write_text(f"{NEXT} control\n{READ} read\n")
        wait_for_status(daemon, CONTROL, 401)
        assert get(daemon, "/episodes", NEXT).status_code == 200
        assert tokens_check(daemon, NEXT)["status"] == "pass"
        stream.send(step_bytes(2).decode())
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                stream.recv(timeout=5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401
    tokens.unlink()
    wait_for_check(daemon, NEXT, "warn")
    assert get(daemon, "/episodes", NEXT).status_code == 200
    assert get(daemon, f"/episodes/{episode}", NEXT).json()["steps"] == 2


def test_a_stream_needs_a_token_in_its_header(guarded: tuple[Daemon, Path]) -> None:
    daemon, _ = guarded
    url = f"ws://127.0.0.1:{daemon.port}/episodes/none/stream"
    attempts: list[tuple[str, dict[str, Any], int]] = [
        (url, {}, 401),
        (f"{url}?token={CONTROL}", {}, 401),
        (url, {"subprotocols": [f"bearer.{CONTROL}"]}, 401),
        (url, {"additional_headers": {"Authorization": "Bearer wrong-token-0123456789"}}, 401),
        (url, {"additional_headers": {"Authorization": f"Bearer {READ}"}}, 403),
        (
            url,
            {"additional_headers": {"Authorization": f"Bearer {CONTROL}"}, "origin": "http://evil.example"},
            403,
        ),
    ]
    for target, options, status in attempts:
        with pytest.raises(InvalidStatus) as refused, connect(target, **options):
            pass
        assert refused.value.response.status_code == status, (target, options)
        assert json.loads(refused.value.response.body)["status"] == status
    assert httpx.get(f"{daemon.url}/episodes").headers["www-authenticate"] == "Bearer"


@pytest.mark.long
def test_no_token_is_in_the_log_even_at_debug(guarded: tuple[Daemon, Path]) -> None:
    daemon, tokens = guarded
    url = f"ws://127.0.0.1:{daemon.port}/episodes/none/stream"
    unknown = "unknown-token-0123456789"
    for token in (CONTROL, READ, unknown):
        headers = {"Authorization": f"Bearer {token}"}
        httpx.post(f"{daemon.url}/episodes?token={token}", content=b"{", headers=headers)
        httpx.get(f"{daemon.url}/health", headers=headers)
        with (
            contextlib.suppress(InvalidStatus, ConnectionClosed),  # the refusal may come before the message is out
            connect(f"{url}?token={token}", additional_headers=headers) as found,
        ):
            found.send("{")
            while True:
                found.recv(timeout=5)
    tokens.write_text(f"{NEXT}\n")
    give_up_s = time.monotonic() + 20
    while "tokens file not taken over" not in daemon.log_path.read_text():
        assert time.monotonic() < give_up_s
        time.sleep(0.05)
    daemon.stop()
    log = daemon.log_path.read_text()
    assert "0123456789" not in log


@pytest.mark.long
def test_a_tokens_file_that_all_can_read_is_a_warning(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{READ} read\n")
    tokens.chmod(0o644)
    with running_daemon(tmp_path / "brain", "--tokens-file", str(tokens)) as daemon:
        assert "chmod" in tokens_check(daemon, READ)["output"]
        assert "not private" in daemon.log_path.read_text()
        tokens.chmod(0o600)
        assert tokens_check(daemon, READ)["status"] == "pass"
