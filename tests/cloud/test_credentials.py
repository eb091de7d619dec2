"""Who the robot is: an emulator gets no token, and a key that is missing, refused or early is told apart."""

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from google.auth.credentials import AnonymousCredentials

from brain_service.cloud.answers import answer_error, reaching, retry_after_s
from brain_service.cloud.credentials import authorized_session, credentials, is_emulator, storage_endpoint
from brain_service.cloud.storage import open_remote
from brain_service.errors import (
    BrainError,
    ConfigError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    TooManyError,
    UnauthorizedError,
    UnavailableError,
)
from brain_service.settings import CloudSettings


class _Tokens(BaseHTTPRequestHandler):
    """Google's token endpoint: answers what the test says, and serves as an API that shows the token it got."""

    answer: ClassVar[tuple[int, dict[str, Any]]] = (200, {})
    seen: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._send(*self.answer)

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization", ""))
        self._send(200, {})

    def _send(self, status: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def token_url() -> Iterator[str]:
    """Where tokens are had."""
    with HTTPServer(("127.0.0.1", 0), _Tokens) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/token"
        server.shutdown()


@pytest.fixture(scope="module")
def key_file(token_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON key of a service account that gets its tokens here."""
    key = generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("key") / "key.json"
    info = {"type": "service_account", "project_id": "p", "private_key_id": "1", "private_key": key.decode()}
    info |= {"client_email": "robot@p.iam.gserviceaccount.com", "token_uri": token_url}
    path.write_text(json.dumps(info))
    return path


@pytest.mark.parametrize(
    ("endpoint", "emulator"),
    [
        ("http://127.0.0.1:4443", True),
        ("http://localhost:1", True),
        ("http://[::1]:1", True),
        ("https://127.0.0.1:1", False),
        ("http://10.0.0.1:1", False),
        ("https://storage.googleapis.com", False),
        ("http://127.0.0.1.evil.com", False),
        ("http://localhost.evil.com", False),
        ("nothing", False),
    ],
)
def test_only_this_machine_over_http_is_an_emulator(endpoint: str, emulator: bool) -> None:
    assert is_emulator(endpoint) is emulator
    settings = CloudSettings(credentials_file=Path("/nowhere/key.json"))
    if emulator:
        assert isinstance(credentials(settings, endpoint), AnonymousCredentials)
    else:
        with pytest.raises(ConfigError):
            credentials(settings, endpoint)


def test_a_token_never_travels_in_the_clear(key_file: Path) -> None:
    with pytest.raises(ConfigError, match="in the clear; use https"):
        authorized_session(CloudSettings(credentials_file=key_file), "http://storage.example.com")


def test_the_settings_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    assert storage_endpoint(CloudSettings()) == "https://storage.googleapis.com"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:1234")
    assert storage_endpoint(CloudSettings()) == "http://127.0.0.1:1234"
    assert storage_endpoint(CloudSettings(storage_endpoint="https://private/")) == "https://private"


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "No such file"), ("{", "Expecting property"), ("[]", "no JSON object"), ('{"type": "x"}', "type")],
)
def test_a_file_that_is_no_key_is_named_with_the_next_step(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "key.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=says) as raised:
        authorized_session(CloudSettings(credentials_file=path), "https://storage.googleapis.com")
    assert str(path) in raised.value.detail
    assert "gcloud auth application-default login" in raised.value.detail


def test_no_credentials_at_all_says_where_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    # No file of gcloud's, and no metadata server to ask.
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "True")
    with pytest.raises(ConfigError, match=r"where Google's libraries look.*gcloud auth.*cloud\.credentials_file"):
        open_remote("gs://robots/run", CloudSettings()).read("status.json")


def test_a_key_signs_requests_with_its_token(key_file: Path, token_url: str) -> None:
    _Tokens.answer = (200, {"access_token": "secret-1", "expires_in": 3600, "token_type": "Bearer"})
    session = authorized_session(CloudSettings(credentials_file=key_file), "https://storage.googleapis.com")
    _Tokens.seen.clear()
    # The session's address is the caller's matter; this one shows what it was sent.
    assert session.get(token_url).status_code == 200
    assert _Tokens.seen == ["Bearer secret-1"]


REFUSALS: list[tuple[int, dict[str, str], type[BrainError], str]] = [
    (
        400,
        {
            "error": "invalid_grant",
            "error_description": "Invalid JWT: Token must be a short-lived token (60 minutes) "
            "and in a reasonable timeframe. Check your iat and exp values in the JWT claim.",
        },
        UnauthorizedError,
        "timedatectl",
    ),
    (
        400,
        {"error": "invalid_grant", "error_description": "Invalid JWT Signature."},
        UnauthorizedError,
        "date|login",
    ),
    (
        400,
        {"error": "invalid_grant", "error_description": "Token has been expired or revoked."},
        UnauthorizedError,
        "gcloud auth application-default login",
    ),
    (
        401,
        {"error": "invalid_client", "error_description": "The OAuth client was deleted."},
        UnauthorizedError,
        "renew",
    ),
]


@pytest.mark.parametrize(("status", "document", "kind", "says"), REFUSALS)
def test_a_refused_key_is_told_from_a_clock_that_is_off(
    key_file: Path, status: int, document: dict[str, str], kind: type[BrainError], says: str
) -> None:
    _Tokens.answer = (status, document)
    settings = CloudSettings(credentials_file=key_file, storage_endpoint="https://127.0.0.1:9")
    with pytest.raises(kind, match=says) as raised:
        open_remote("gs://robots/run", settings).read("status.json")
    assert raised.value.detail.startswith("gs://robots/run/status.json: ")


def test_a_token_server_that_is_away_is_worth_another_try(tmp_path: Path, key_file: Path) -> None:
    away = json.loads(key_file.read_text()) | {"token_uri": "http://127.0.0.1:9/token"}
    (tmp_path / "key.json").write_text(json.dumps(away))
    session = authorized_session(
        CloudSettings(credentials_file=tmp_path / "key.json"), "https://storage.googleapis.com"
    )
    with pytest.raises(UnavailableError, match="check the network"), reaching("gs://robots/x"):
        session.get("https://127.0.0.1:9")


class _Answer:
    def __init__(self, code: int, document: object = None, **headers: str) -> None:
        self.status_code, self._document = code, document
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.text = "<html>\n plain  text</html>"

    def json(self) -> object:
        if self._document is None:
            raise ValueError("no JSON")
        return self._document


def _error(message: str, reason: str) -> dict[str, Any]:
    return {"error": {"message": message, "errors": [{"reason": reason}]}}


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (_Answer(503), UnavailableError, "503 <html> plain text"),
        (_Answer(429, _error("slow down", "rateLimitExceeded")), UnavailableError, "429 slow down"),
        (_Answer(408), UnavailableError, "408"),
        (_Answer(401, _error("Invalid Credentials", "authError")), UnauthorizedError, "login"),
        (_Answer(401, {"error": {"message": "Invalid JWT: iat"}}), UnauthorizedError, "clock is off: set"),
        (_Answer(403, _error("no billing", "accountDisabled")), ForbiddenError, r"cloud\.project.*billing"),
        (_Answer(403, _error("used up", "quotaExceeded")), TooManyError, "quota"),
        (_Answer(404, {"error": "text"}), NotFoundError, "404"),
        (_Answer(409, {"error": {"message": "busy"}}), ConflictError, "409 busy"),
        (_Answer(412, _error("exists", "conditionNotMet")), ConflictError, "exists"),
        (_Answer(400, []), InvalidError, "400"),
    ],
    ids=lambda value: str(getattr(value, "status_code", "")),
)
def test_answers_become_errors_that_say_what_to_change(answer: _Answer, kind: type[BrainError], says: str) -> None:
    error = answer_error(answer, "gs://robots/x")
    assert type(error) is kind
    with pytest.raises(kind, match=f"gs://robots/x: .*{says}"):
        raise error


def test_the_clock_of_the_answer_tells_how_far_off_ours_is() -> None:
    def said(offset_s: float) -> str:
        then = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + offset_s))
        return answer_error(_Answer(401, Date=then), "x").detail

    assert re.search(r"clock is off \(it is (3599|3600) s behind\)", said(3600))
    assert re.search(r"clock is off \(it is (3600|3601) s ahead\)", said(-3600))
    assert "clock" not in said(0)


def test_retry_after_is_seconds_or_a_date() -> None:
    then = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert retry_after_s(_Answer(503, Retry_After="7")) == 7
    assert retry_after_s(_Answer(503, Retry_After=then)) == pytest.approx(100, abs=2)
    assert retry_after_s(_Answer(503, Retry_After="soon")) is None
    assert retry_after_s(_Answer(503)) is None
    assert answer_error(_Answer(503, Retry_After="7"), "x").members == {"retry_after_s": 7.0}
