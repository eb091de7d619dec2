"""Structured logs on standard error: one JSON object a line for machines, short text for a terminal."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

__all__ = ["RepeatFilter", "setup_logging"]

# A robot that posts at 200 Hz to a failing medium is refused 200 times a second; one line says it.
_REPEAT_S = 10.0
_MAX_KNOWN = 1000

_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}


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
        document |= {key: value for key, value in record.__dict__.items() if key not in _PLAIN}
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


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
        extra = "".join(f" {key}={value}" for key, value in record.__dict__.items() if key not in _PLAIN)
        line = f"{moment} {record.levelname.lower():7} {record.getMessage()}{extra}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def setup_logging(level: str, style: Literal["auto", "json", "text"] = "auto") -> None:
    """Send every logger, uvicorn's too, to standard error; `auto` is text on a terminal and JSON elsewhere."""
    text = style == "text" or (style == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    handler.addFilter(RepeatFilter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # Per-request lines at 200 Hz would be the largest writer on the card.
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
