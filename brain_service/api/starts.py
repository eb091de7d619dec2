"""How the daemon's own starts went, on disk: what tells a crash loop from a stop, and ends it in safe mode.

`inference/starts.py` counts the crashes of one model and puts another in its place. This counts the daemon's,
whatever they come from, and acts two crashes later, so that the model's own remedy is tried first. In safe mode
the daemon records and answers `/health`: no model is loaded, no job runs.
"""

import json
import logging
from pathlib import Path

from brain_service.durable import write_atomic

__all__ = ["DaemonStarts"]

log = logging.getLogger(__name__)

FILE = "starts.json"
AFTER_THE_MODELS_OWN = 2


class DaemonStarts:
    """The record of one data directory. A card that cannot be written is logged and holds no start up."""

    def __init__(self, data_dir: Path, max_model_crashes: int) -> None:
        """`max_model_crashes` is `inference.max_start_crashes`."""
        self._path = data_dir / FILE
        self._limit = max_model_crashes + AFTER_THE_MODELS_OWN
        self._crashes = 0

    def begin(self) -> str:
        """Note that a start begins; return why it must be one in safe mode, or nothing.

        A start counts as crashed until `steady` or `stopped` was called.
        """
        self._crashes = self._read()
        self._write(self._crashes + 1)
        if self._crashes < self._limit:
            return ""
        return (
            f"safe mode: the daemon died {self._crashes} times in a row within seconds of its start, so it only "
            "records: no model is loaded and no job runs. See its log, then restart it in order "
            "('systemctl restart continuon-brain') to try everything again"
        )

    def steady(self) -> None:
        """Note that this start came well. In safe mode the count stays: only a stop in order ends that."""
        if self._crashes < self._limit:
            self._write(0)

    def stopped(self) -> None:
        """Note a stop in order."""
        self._write(0)

    def _read(self) -> int:
        try:
            crashes = json.loads(self._path.read_bytes())["crashes"]
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("cannot read %s (%s): crashes at start are counted anew", self._path, error)
            return 0
        return crashes if type(crashes) is int and crashes >= 0 else 0

    def _write(self, crashes: int) -> None:
        try:
            write_atomic(self._path, json.dumps({"crashes": crashes}).encode())
        except OSError as error:
            log.warning("cannot write %s: %s; a crash at start would not be counted", self._path, error)
