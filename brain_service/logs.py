"""Structured logs on standard error: one JSON object a line for machines, short text for a terminal."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

__all__ = ["setup_logging"]

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
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # Per-request lines at 200 Hz would be the largest writer on the card.
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
