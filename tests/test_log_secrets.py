"""No line of a log holds a secret, wherever in the line it stood, and a masked line is still whole."""

import hashlib
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.log_secrets import MASK, know_tokens, mask_fields, mask_text
from brain_service.logs import JOB_ID, MODEL_ID, REQUEST_ID, JsonFormatter, LogCounts, TextFormatter

TOKEN = "f3a91c77d0e24b6c9a55e1d2c3b4a5f6"


@pytest.fixture(autouse=True)
def _known() -> Iterator[None]:
    forget = know_tokens(lambda: [hashlib.sha256(TOKEN.encode()).digest()])
    yield
    forget()


@pytest.mark.parametrize(
    "line",
    [
        TOKEN,
        f"no session {TOKEN!r}; begin one",
        f"path=/episodes/{TOKEN}/steps",
        f"GET /jobs?token={TOKEN}&limit=1",
        f"it said {TOKEN}.",
        f'{{"path": "/a/{TOKEN}", "n": 1}}',
        f"https://robot:{TOKEN}@host/",
    ],
)
def test_a_known_token_is_masked_wherever_it_stands(line: str) -> None:
    masked = mask_text(line)
    assert TOKEN not in masked
    assert MASK in masked


@pytest.mark.parametrize(
    "line",
    [
        "Authorization: Bearer abcdefgh12345678",
        "api-key sk-0123456789abcdef",
        "refused by storage: ya29.a0AfH6SMBx-yz_1",
        "-----BEGIN PRIVATE KEY-----\\nMIIEvQIBADANBg\\n-----END PRIVATE KEY-----",
    ],
)
def test_what_looks_like_a_secret_is_masked_though_nobody_knows_it(line: str) -> None:
    assert not any(word in mask_text(line) for word in ("abcdefgh12345678", "0123456789abcdef", "AfH6", "MIIEv"))


@pytest.mark.parametrize("line", ["listening on http://127.0.0.1:8080", "model 0123456789abcdef0123 serves", ""])
def test_what_is_none_stays(line: str) -> None:
    assert mask_text(line) == line


def test_fields_named_as_secrets_are_masked() -> None:
    found = mask_fields({"password": "p", "access_token": "t", "tokens": 3, "path": "/x"})
    assert found == {"password": MASK, "access_token": MASK, "tokens": 3, "path": "/x"}


@given(st.text(), st.text())
def test_a_line_stays_json_whatever_is_logged(message: str, field: str) -> None:
    record = logging.LogRecord("brain", logging.ERROR, "f.py", 1, "%s Bearer %s", (message, field), None)
    record.path = f"{field} {TOKEN}"
    line = JsonFormatter().format(record)
    assert json.loads(line)["level"] == "error"
    assert TOKEN not in line


def test_a_line_says_what_it_belongs_to() -> None:
    tokens = [(each, each.set(text)) for each, text in ((REQUEST_ID, "r-1"), (MODEL_ID, "m-1"), (JOB_ID, "j-1"))]
    try:
        record = logging.LogRecord("brain", logging.INFO, "f.py", 1, "hello", (), None)
        document = json.loads(JsonFormatter().format(record))
        assert (document["request_id"], document["model_id"], document["job_id"]) == ("r-1", "m-1", "j-1")
        assert "session_id" not in document
        assert "request_id=r-1" in TextFormatter().format(record)
    finally:
        for each, before in tokens:
            each.reset(before)


def test_lines_are_counted_and_the_last_error_is_kept() -> None:
    counts = LogCounts()
    for level, message in ((logging.WARNING, "w"), (logging.ERROR, f"lost {TOKEN}"), (logging.WARNING, "w")):
        counts.handle(logging.LogRecord("brain", level, "f.py", 1, message, (), None))
    assert counts.by_level == {"warning": 2, "error": 1}
    assert counts.last_error is not None
    assert counts.last_error[1] == f"lost {MASK}"
