"""Structured logs: a line is one JSON object with its extra fields; a terminal gets short text."""

import json
import logging

import pytest

from brain_service.logs import JsonFormatter, RepeatFilter, TextFormatter, setup_logging


def record(exception: bool = False) -> logging.LogRecord:
    try:
        raise ValueError("bad value") if exception else KeyError
    except (ValueError, KeyError) as error:
        info = (type(error), error, error.__traceback__) if exception else None
    made = logging.LogRecord("brain.test", logging.INFO, "file.py", 1, "wrote %d steps", (3,), info)
    made.episode_id = "e-1"
    made.model_id = None
    return made


def test_a_json_line_holds_message_and_extra_fields() -> None:
    line = JsonFormatter().format(record())
    document = json.loads(line)
    assert "\n" not in line
    assert document["message"] == "wrote 3 steps"
    assert document["episode_id"] == "e-1"
    assert document["level"] == "info"
    assert document["time"].endswith("+00:00")
    assert set(document) == {"time", "level", "logger", "message", "episode_id", "model_id"}


def test_a_traceback_goes_to_the_log_and_stays_one_line() -> None:
    line = JsonFormatter().format(record(exception=True))
    assert "\n" not in line
    assert "ValueError: bad value" in json.loads(line)["exception"]


def test_text_is_short() -> None:
    line = TextFormatter().format(record())
    assert "wrote 3 steps" in line
    assert "episode_id=e-1" in line
    assert "ValueError: bad value" in TextFormatter().format(record(exception=True)).splitlines()[-1]


def refusal(created_s: float, level: int = logging.WARNING, **extra: str) -> logging.LogRecord:
    made = logging.LogRecord("brain.test", level, "file.py", 1, "request failed", (), None)
    made.created = created_s
    made.__dict__.update(extra)
    return made


def test_the_same_trouble_is_written_once_in_a_while_and_counted() -> None:
    held = RepeatFilter(10.0)
    written = [second for second in range(25) if held.filter(refusal(1000.0 + second, path="/a"))]
    assert written == [0, 10, 20]
    last = refusal(1030.0, path="/a")
    assert held.filter(last)
    assert last.__dict__["repeated"] == 4
    assert held.filter(refusal(1030.0, path="/b"))
    assert held.filter(refusal(1030.0, path="/a", type="another"))
    assert held.filter(refusal(500.0, path="/a")), "a clock that was set back silences nothing"


def test_what_is_no_trouble_is_never_held_back() -> None:
    held = RepeatFilter()
    assert all(held.filter(refusal(1000.0, logging.INFO)) for _ in range(5))


def test_off_a_terminal_auto_is_json(capfd: pytest.CaptureFixture[str]) -> None:
    kept = logging.getLogger().handlers[:]
    try:
        setup_logging("info")
        logging.getLogger("brain.test").info("hello", extra={"n": 1})
        logging.getLogger("uvicorn.access").info("one line a request")
    finally:
        logging.basicConfig(handlers=kept, force=True)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(line["message"], line["n"]) for line in lines] == [("hello", 1)]
