"""However a run ends: `status.json` says how, the other hosts hear of it, and the exit code tells the launcher."""

import logging
import os
import sys
from types import TracebackType
from typing import Any

from brain_service.cloud.run_status import EXIT_PREEMPTED
from brain_service.errors import BrainError, UnavailableError
from cloud_trainer.distributed import Hosts
from cloud_trainer.exits import exit_code
from cloud_trainer.heartbeat import Heartbeat

__all__ = ["Ending"]

log = logging.getLogger(__name__)


class Ending:
    """Stands around an attempt; what fails in it is told to everybody, and goes on as a BrainError.

    On several hosts the process is ended at once: the others may be in a collective that will never come about,
    and JAX would wait for them.
    """

    def __init__(self, hosts: Hosts, beat: Heartbeat) -> None:
        self._hosts = hosts
        self._beat = beat

    def __enter__(self) -> None:
        self._hosts.watch(self._heard)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not isinstance(error, Exception):
            self._hosts.stop_watching()
            return
        # The first cause of a failed collective is on another host, which is about to tell.
        failure = error if isinstance(error, BrainError) else self._foreign(error)
        code = exit_code(failure)
        self._tell(failure, code)
        self._hosts.tell_end(code, failure.problem())
        if self._hosts.count > 1:
            _leave(code, failure.detail)
        if failure is not error:
            raise failure from error

    def _foreign(self, error: Exception) -> BrainError:
        log.exception("the run failed")
        self._hosts.linger()
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return UnavailableError(
            f"{type(error).__name__}: {first}; if it happens again, look into the log of this attempt"
        )

    def _tell(self, failure: BrainError, code: int) -> None:
        if code == EXIT_PREEMPTED:
            self._beat.last_words(phase="preempted")
        else:
            self._beat.last_words(phase="failed", error=failure.problem())

    def _heard(self, end: dict[str, Any]) -> None:
        """Another host told of an end; called before this process is ended."""
        if end["exit_code"] == EXIT_PREEMPTED:
            self._beat.last_words(phase="preempted")
        else:
            self._beat.last_words(phase="failed", error=end["problem"])
        problem = end["problem"] or {}
        sys.stderr.write(f"cloud-trainer: another host: {problem.get('detail', 'told to go')}\n")


def _leave(code: int, detail: str) -> None:
    sys.stderr.write(f"cloud-trainer: {detail}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
