"""Runs that are paid for once: begun, watched, taken up after preemption, stopped in time, found after a restart.

The intent is stored before anything is asked for. Before a creation the service is asked what exists for the run,
and what exists is adopted; the next attempt is asked for only once the one before is known to be gone. So a
SIGKILL between any two steps costs a look, not a second machine. A run is well if its own heartbeat moves; its
capacity alone says nothing.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from brain_service.cloud.judging import Facts, Verdict, judge
from brain_service.cloud.launchers import Capacity, Launcher, RunRequest
from brain_service.cloud.launchers.table import TARGETS, launcher_for
from brain_service.cloud.machines import tpu_slice
from brain_service.cloud.moments import elapsed_s, moment
from brain_service.cloud.prices import PriceList
from brain_service.cloud.rest import is_stockout
from brain_service.cloud.run_changes import (
    GONE,
    beaten,
    claimed,
    ended,
    is_paused,
    next_attempt,
    noted,
    paused,
    released,
    running_s,
)
from brain_service.cloud.run_status import STATUS_FILE, RunStatus
from brain_service.cloud.run_table import ENDED, RunRecord, RunState, RunTable
from brain_service.cloud.storage import open_remote
from brain_service.errors import BrainError, InvalidError, NotFoundError, UnavailableError
from brain_service.settings import CloudSettings

__all__ = ["CloudRuns", "RunView"]

log = logging.getLogger(__name__)

_RUN_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
# A next attempt must at least be worth its start.
_LEAST_S = 60.0
_MAX_STATUS_BYTES = 1024**2


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run for people and for the job that waits for it; `error` is a problem document once it has failed."""

    run_id: str
    state: RunState
    detail: str
    status: RunStatus | None
    attempt: int
    cost_usd: float
    """By list price, so far."""
    capacity: str | None
    error: Mapping[str, Any] | None
    bills: bool = False
    """Whether something is still to be stopped that may bill, also of a run that has ended."""


class CloudRuns:
    """The runs of one robot. Calls block, on the network too; any may be repeated after a kill."""

    def __init__(
        self,
        database: Path,
        settings: CloudSettings,
        launchers: Mapping[str, Launcher] | None = None,
        *,
        prices: PriceList | None = None,
        background: bool = True,
    ) -> None:
        """Open the table; `launchers` by target stand in for the ones that the settings describe.

        `background` is `jobs.background`, for trainings on this machine.

        Raises:
            ConfigError: the database cannot be opened.
            CorruptDataError: it is damaged.
        """
        self._settings = settings
        self._table = RunTable(database)
        self._folder = database.parent / "launches"
        self._launchers: dict[str, Launcher] = dict(launchers or {})
        self._targets = tuple(launchers or TARGETS)
        self._prices = prices or PriceList()
        self._background = background

    def begin(self, request: RunRequest) -> None:
        """Store that a run is wanted; nothing is asked for yet. Again with the same request changes nothing.

        Raises:
            InvalidError: the run id, the target or the topology is none.
            ConflictError: the run id belongs to another request.
            UnavailableError: the medium fails.
        """
        if not _RUN_ID.fullmatch(request.run_id):
            raise InvalidError(
                f"run id {request.run_id!r}: up to 40 lower-case letters, digits and '-', neither first nor last",
                field="run_id",
            )
        if request.target not in self._targets:
            raise InvalidError(f"target {request.target!r}: known are {', '.join(self._targets)}", field="target")
        if request.target != "process":
            tpu_slice(request.topology)
        self._table.add(RunRecord(request=request))

    def advance(self, run_id: str) -> RunView:
        """Look at a run once, do what follows, at most one thing, and return how it stands.

        What may pass (no network, no machines now) is in `detail` and changes nothing; what will not fails the
        run.

        Raises:
            NotFoundError: no such run was begun.
            UnavailableError: the database fails.
        """
        record = self._table.get(run_id)
        try:
            if record.release or (record.state in ENDED and record.asked_at):
                record = self._let_go(record)
            elif record.state not in ENDED:
                record = self._step(record, self._launcher(record.request.target))
        except UnavailableError as error:
            record = self._tell(record, error.detail)
        except BrainError as error:
            record = self._refused(record, error)
        return self._view(record)

    def view(self, run_id: str) -> RunView:
        """Return how a run stood at the last look; asks nobody.

        Raises:
            NotFoundError: no such run was begun.
            UnavailableError: the database fails.
        """
        return self._view(self._table.get(run_id))

    def unfinished(self) -> tuple[str, ...]:
        """Return the ids of the runs that have not ended.

        Raises:
            UnavailableError: the database fails.
        """
        return self._table.unfinished()

    def stop(self, run_id: str) -> RunView:
        """End a run for good, and what bills for it. One that has ended stays as it ended.

        Capacity that cannot be stopped now is left to later calls of `advance` and `reap`.

        Raises:
            NotFoundError: no such run was begun.
            UnavailableError: the database fails.
        """

        def stopped(old: RunRecord) -> RunRecord:
            if old.state in ENDED:
                return old
            release = (*old.release, *([old.capacity] if old.capacity else []))
            return replace(old, state="stopped", detail="stopped as asked", release=release)

        record = self._table.change(run_id, stopped)
        try:
            record = self._let_go(record)
        except BrainError as error:
            log.warning("capacity of run %s is not stopped yet: %s", run_id, error.detail)
        return self._view(record)

    def reap(self) -> list[str]:
        """Stop what bills for this robot and belongs to no run that goes on; returns its names.

        A service that cannot be asked now is left for the next time.

        Raises:
            UnavailableError: the database fails.
        """
        stopped: list[str] = []
        for target in self._targets:
            if target != "process" and target not in self._launchers and self._settings.project is None:
                continue
            try:
                launcher = self._launcher(target)
                for found in launcher.owned():
                    if not self._is_wanted(found):
                        launcher.stop(found.name)
                        stopped.append(found.name)
            except BrainError as error:
                log.warning("cannot look for forgotten capacity (%s): %s", target, error.detail)
        return stopped

    def close(self) -> None:
        """Close the database; what runs goes on."""
        self._table.close()

    def _launcher(self, target: str) -> Launcher:
        if target not in self._launchers:
            self._launchers[target] = launcher_for(target, self._settings, self._folder, self._background)
        return self._launchers[target]

    def _is_wanted(self, found: Capacity) -> bool:
        record = self._table.find(found.run_id)
        if record is None or record.state in ENDED or found.name in record.release:
            return False
        return record.capacity in (None, found.name)

    def _let_go(self, record: RunRecord) -> RunRecord:
        """Stop what is to be stopped; before a next attempt, until it is known to be gone."""
        launcher = self._launcher(record.request.target)
        for name in record.release:
            launcher.stop(name)
            if record.state not in ENDED:
                left = launcher.look(name)
                if left is not None and left.phase not in GONE:
                    return self._tell(record, f"{record.detail}; {name} is on its way out ({left.detail})")
            record = self._change(record, partial(released, name=name))
        if record.state in ENDED and record.asked_at and elapsed_s(record.asked_at) >= launcher.settle_s:
            # An asking whose answer never came has no name here.
            for found in launcher.find(record.request.run_id):
                if found.phase not in GONE:
                    launcher.stop(found.name)
            record = self._change(record, lambda old: replace(old, asked_at=None))
        return record

    def _step(self, record: RunRecord, launcher: Launcher) -> RunRecord:
        capacity = self._look(record, launcher)
        if capacity is None:
            return self._ask(record, launcher)
        record = self._change(record, lambda old: noted(old, capacity))
        status, trouble = self._read_status(record)
        if status is not None:
            record = self._change(record, lambda old: beaten(old, status))
        verdict = judge(self._facts(record, capacity, status, trouble), self._settings)
        return self._carry_out(record, capacity, verdict)

    def _facts(
        self, record: RunRecord, capacity: Capacity, status: RunStatus | None, trouble: BrainError | None
    ) -> Facts:
        return Facts(
            record=record,
            capacity=capacity,
            status=status,
            status_trouble=trouble,
            cost_usd=self._cost_usd(record.request, running_s(record)),
            running_s=running_s(record),
            quiet_s=elapsed_s(record.beat_at) if record.beat_at else 0.0,
            still_s=elapsed_s(record.moved_at) if record.moved_at else 0.0,
            waited_s=elapsed_s(record.waiting_at) if record.waiting_at else 0.0,
        )

    def _look(self, record: RunRecord, launcher: Launcher) -> Capacity | None:
        """Return the run's capacity, adopting what nobody wrote down; None where there is none."""
        if record.capacity is not None:
            return launcher.look(record.capacity) or Capacity(
                name=record.capacity,
                run_id=record.request.run_id,
                phase="stopped",
                detail="gone, deleted by others",
            )
        for found in launcher.find(record.request.run_id):
            is_late = found.attempt is not None and found.attempt < record.attempt
            if found.phase in GONE and (is_late or record.asked_at is None):
                continue
            if found.name not in record.release and not is_late:
                return found
        return None

    def _ask(self, record: RunRecord, launcher: Launcher) -> RunRecord:
        """Ask for a machine, where none was asked for a moment ago."""
        if record.asked_at and elapsed_s(record.asked_at) < launcher.settle_s:
            return self._tell(record, "asked for; waiting to see whether that arrived")
        verdict = self._may_ask(record)
        if verdict is not None:
            return self._carry_out(record, None, verdict)
        if is_paused(record):
            return record
        mark = moment()
        mine = self._change(record, lambda old: claimed(old, record, mark))
        if mine.asked_at != mark:
            return mine
        try:
            capacity = launcher.create(self._affordable(record), record.attempt)
        except UnavailableError as error:
            if not is_stockout(error.detail):
                # It may have been heard all the same: the next look tells.
                raise
            return self._change(mine, lambda old: paused(old, error.detail))
        except BrainError as error:
            mine = self._change(mine, lambda old: replace(old, asked_at=None))
            verdict = Verdict(kind="fail", detail=error.detail, error=error.problem())
            return self._carry_out(mine, None, verdict)
        return self._change(mine, lambda old: replace(noted(old, capacity), detail=capacity.detail))

    def _may_ask(self, record: RunRecord) -> Verdict | None:
        """Return why no further machine is asked for: waited too long, or too little time or money left."""
        nothing = Capacity(name="", run_id=record.request.run_id, phase="waiting", detail=record.detail)
        facts = self._facts(record, nothing, None, None)
        if record.starts:
            facts = replace(facts, cost_usd=facts.cost_usd + self._cost_usd(record.request, _LEAST_S))
        verdict = judge(facts, self._settings)
        return verdict if verdict.kind == "fail" else None

    def _affordable(self, record: RunRecord) -> RunRequest:
        """Have the service end what this robot might not be there to stop: by time left and by money left."""
        request, ran_s = record.request, running_s(record)
        left_s, per_s = request.max_run_s - ran_s, self._cost_usd(request, 1.0)
        if per_s > 0:
            left_s = min(left_s, self._settings.max_cost_usd / per_s - ran_s)
        return replace(request, max_run_s=max(1.0, left_s))

    def _read_status(self, record: RunRecord) -> tuple[RunStatus | None, BrainError | None]:
        """Return the run's heartbeat, or why there is none; an absent one is neither."""
        output_dir = record.request.output_dir
        try:
            data = open_remote(output_dir, self._settings).read(STATUS_FILE, max_bytes=_MAX_STATUS_BYTES)
            status = RunStatus.from_json(data, f"{output_dir}/{STATUS_FILE}")
        except NotFoundError:
            return None, None
        except BrainError as error:
            return None, error
        if status.run_id == record.request.run_id:
            return status, None
        return None, InvalidError(
            f"{output_dir}/{STATUS_FILE} is of run {status.run_id!r}, not of {record.request.run_id!r}; give each "
            "run an output directory of its own, and its id to the trainer",
            field="output_dir",
        )

    def _carry_out(self, record: RunRecord, capacity: Capacity | None, verdict: Verdict) -> RunRecord:
        if verdict.kind == "wait":
            return self._tell(record, verdict.detail)
        names = (capacity.name,) if capacity is not None else ()
        then = next_attempt if verdict.kind == "again" else ended
        record = self._change(record, lambda old: then(old, verdict, names))
        try:
            return self._let_go(record)
        except BrainError as error:
            # The verdict stands; stopping is tried again at the next call, and by the reaper.
            log.warning("capacity of run %s is not stopped yet: %s", record.request.run_id, error.detail)
            return record

    def _refused(self, record: RunRecord, error: BrainError) -> RunRecord:
        """Fail the run, unless a machine may be running that only cannot be asked about."""
        if record.state in ENDED:
            log.warning("capacity of run %s cannot be stopped: %s", record.request.run_id, error.detail)
            return record
        if record.capacity or record.release or record.asked_at:
            marked = self._change(record, lambda old: replace(old, blind_at=old.blind_at or moment()))
            if marked.blind_at and elapsed_s(marked.blind_at) < self._settings.stall_timeout_s:
                return self._tell(marked, f"cannot ask how the run is, which may go on: {error.detail}")
        names = (record.capacity,) if record.capacity else ()
        verdict = Verdict(kind="fail", detail=error.detail, error=error.problem())
        return self._change(record, lambda old: ended(old, verdict, names))

    def _tell(self, record: RunRecord, detail: str) -> RunRecord:
        """Store what there is to say, beside how a run ended only in the log."""
        if record.state in ENDED:
            log.warning("run %s: %s", record.request.run_id, detail)
            return record
        return self._change(record, lambda old: replace(old, detail=detail))

    def _change(self, record: RunRecord, change: Callable[[RunRecord], RunRecord]) -> RunRecord:
        return self._table.change(record.request.run_id, change)

    def _cost_usd(self, request: RunRequest, running_s: float) -> float:
        if request.target == "process":
            return 0.0
        return self._prices.cost_usd(tpu_slice(request.topology), running_s, spot=request.spot)

    def _view(self, record: RunRecord) -> RunView:
        status = RunStatus(**record.status) if record.status is not None else None
        return RunView(
            run_id=record.request.run_id,
            state=record.state,
            detail=record.detail,
            status=status,
            attempt=record.attempt,
            cost_usd=self._cost_usd(record.request, running_s(record)),
            capacity=record.capacity,
            error=record.error,
            bills=bool(record.release or record.asked_at)
            or (record.state not in ENDED and record.capacity is not None),
        )
