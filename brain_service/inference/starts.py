"""How the daemon's starts went, on disk: what tells a crash loop from a stop, and remembers safe mode.

`models/starts.json` is written when a model begins to load, when it has served for a while, and at a graceful
stop. A start that finds the mark of a beginning knows that the one before it crashed. Every method blocks: call
from a thread.
"""

import json
import logging
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from brain_service.durable import write_atomic

__all__ = ["Record", "Starts"]

log = logging.getLogger(__name__)

FILE = "starts.json"

Phase = Literal["starting", "healthy", "stopped"]


@dataclass(frozen=True, slots=True)
class Record:
    """The last start: of which model, how far it came, and the crashes in a row up to now.

    `safe_mode` holds the reason while another model stands in for `model_id`.
    """

    model_id: str
    phase: Phase = "starting"
    crashes: int = 0
    safe_mode: str | None = None


class Starts:
    """The record of one models folder. A card that cannot be written to is logged and holds no start up."""

    def __init__(self, models_dir: Path) -> None:
        self.record: Record | None = None
        self.unclean = False
        self._path = models_dir / FILE
        # A stop may come while another thread still writes that the start began.
        self._lock = threading.Lock()
        self._stopped = False

    def begin(self, model_id: str) -> Record:
        """Note that `model_id` begins to load, and return the record with the crash before counted in.

        `unclean` tells from then on whether the daemon before was killed or lost power.
        """
        before = self._read()
        self.unclean = before is not None and before.phase != "stopped"
        if before is None or before.model_id != model_id:
            # Without a record, or where somebody pointed `active` elsewhere by hand, the count begins anew.
            before = Record(model_id, "stopped")
        crashes = before.crashes + 1 if before.phase == "starting" else 0
        return self._write(replace(before, phase="starting", crashes=crashes))

    def crashed(self) -> Record:
        """Count an attempt of this start whose worker crashed."""
        assert self.record is not None, "begin() comes first"
        return self._write(replace(self.record, crashes=self.record.crashes + 1))

    def enter_safe_mode(self, reason: str) -> None:
        """Note that another model stands in; later starts do not try the crashing one."""
        assert self.record is not None, "begin() comes first"
        self._write(replace(self.record, safe_mode=reason))

    def healthy(self) -> None:
        """Note that this start came well: the crashes before it count no more. Safe mode goes on."""
        if self.record is not None:
            self._write(replace(self.record, phase="healthy", crashes=0))

    def activated(self, model_id: str) -> None:
        """Note that a model was swapped in under a running daemon, which ends safe mode."""
        self._write(Record(model_id, "healthy"))

    def stopped(self) -> None:
        """Note a graceful stop."""
        if self.record is not None:
            self._write(replace(self.record, phase="stopped", crashes=0))
        self._stopped = True

    def _read(self) -> Record | None:
        try:
            return _parse(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("cannot read %s (%s): crashes at start are counted anew", self._path, error)
            return None

    def _write(self, record: Record) -> Record:
        with self._lock:
            if self._stopped:
                return record
            self.record = record
            try:
                write_atomic(self._path, json.dumps(asdict(record)).encode())
            except OSError as error:
                log.warning("cannot write %s: %s; a crash at start would not be counted", self._path, error)
        return record


def _parse(data: bytes) -> Record:
    record = Record(**json.loads(data))
    reason = record.safe_mode
    if not (
        isinstance(record.model_id, str)
        and record.phase in ("starting", "healthy", "stopped")
        and type(record.crashes) is int
        and (reason is None or isinstance(reason, str))
    ):
        raise ValueError("a value of the wrong kind")
    return record
