"""Structured logs on standard error: one JSON object a line for machines, short text for a terminal.

Every line says which request, session, model and job it belongs to, where there is one, and no line holds a
secret: see `log_secrets`.
"""

import json
import logging
import sys
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from brain_service.log_secrets import mask_fields, mask_text

__all__ = [
    "JOB_ID",
    "LOGGED",
    "MODEL_ID",
    "REQUEST_ID",
    "SESSION_ID",
    "LogCounts",
    "RepeatFilter",
    "setup_logging",
]

REQUEST_ID: ContextVar[str] = ContextVar("request_id")
SESSION_ID: ContextVar[str] = ContextVar("session_id")
MODEL_ID: ContextVar[str] = ContextVar("model_id")
JOB_ID: ContextVar[str] = ContextVar("job_id")
_CONTEXT = (REQUEST_ID, SESSION_ID, MODEL_ID, JOB_ID)
"""What a line belongs to; set where it becomes known, seen by everything that the same task logs from there on."""

# A robot that posts at 200 Hz to a failing medium is refused 200 times a second; one line says it.
_REPEAT_S = 10.0
_MAX_KNOWN = 1000

_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}


class LogCounts(logging.Handler):
    """Counts lines by level and keeps the last error, for `/metrics` and `/health`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.by_level = {"warning": 0, "error": 0}
        self.last_error: tuple[float, str] | None = None
        """When (monotonic, in seconds) and what."""

    def emit(self, record: logging.LogRecord) -> None:
        """Count a record."""
        level = "error" if record.levelno >= logging.ERROR else "warning"
        self.by_level[level] += 1
        if level == "error":
            self.last_error = time.monotonic(), mask_text(record.getMessage())


LOGGED = LogCounts()
"""Of this process, from `setup_logging` on."""


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a record says beside its message: its own fields, and what it belongs to."""
    own = {key: value for key, value in record.__dict__.items() if key not in _PLAIN}
    context = {each.name: each.get("") for each in _CONTEXT}
    return mask_fields({name: value for name, value in context.items() if value} | own)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON line: time (RFC 3339, UTC), level, logger, message and its extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the traceback, if any, under `exception`."""
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        document |= _extra(record)
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return mask_text(json.dumps(document, default=str))


class RepeatFilter(logging.Filter):
    """Lets the same trouble through once in `period_s` seconds; the next line counts what was held, as `repeated`.

    The same is the same message about the same path, episode and type of problem; only warnings and errors are
    ever held back.
    """

    def __init__(self, period_s: float = _REPEAT_S) -> None:
        super().__init__()
        self._period_s = period_s
        self._seen: dict[tuple[Any, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is to be written."""
        if record.levelno < logging.WARNING:
            return True
        where = (getattr(record, name, None) for name in ("path", "episode_id", "type"))
        key = (record.name, record.getMessage(), *map(str, where))
        written_s, held_back = self._seen.get(key, (float("-inf"), 0))
        if record.created - self._period_s < written_s <= record.created:
            self._seen[key] = (written_s, held_back + 1)
            return False
        if len(self._seen) >= _MAX_KNOWN:
            self._seen.clear()
        self._seen[key] = (record.created, 0)
        if held_back:
            record.repeated = held_back
        return True


class TextFormatter(logging.Formatter):
    """Formats a record for a person: time of day, level, message, then `key=value` of its extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the traceback, if any, on the lines after it."""
        moment = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        extra = "".join(f" {key}={value}" for key, value in _extra(record).items())
        line = f"{moment} {record.levelname.lower():7} {record.getMessage()}{extra}"
        return mask_text(f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line)


def setup_logging(level: str, style: Literal["auto", "json", "text"] = "auto") -> None:
    """Send every logger, uvicorn's too, to standard error; `auto` is text on a terminal and JSON elsewhere."""
    text = style == "text" or (style == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    handler.addFilter(RepeatFilter())
    logging.basicConfig(level=level.upper(), handlers=[handler, LOGGED], force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # Per-request lines at 200 Hz would be the largest writer on the card.
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
