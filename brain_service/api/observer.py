"""Looks once a second at what the daemon's parts tell of themselves, keeps what operators ask about later."""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

import brain_service
from brain_service.api.event_log import EventRing, Kind, Level
from brain_service.episodes.store import EpisodeStore
from brain_service.errors import BrainError
from brain_service.hardware.thermals import Sensors, read_sensors
from brain_service.inference.router import InferenceRouter
from brain_service.jobs.external import ExternalRunner
from brain_service.jobs.hold import Hold
from brain_service.jobs.job import ENDED, Job
from brain_service.jobs.runner import RunnerProcess
from brain_service.jobs.table import JobTable
from brain_service.settings import Settings

__all__ = ["Observer"]

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
SENSOR_LOOKS = 5
"""Sensors are read at each such look: on a robot that costs more than all the rest."""
RECENT_JOBS = 20
ACTING_S = 3.0

_LEVEL_OF_JOB: Mapping[str, Level] = {"succeeded": "info", "failed": "error", "cancelled": "warning"}


class Observer:
    """Notices changes by comparing two looks. Its `events` are the log; `acting` tells whether a robot is driven.

    `run` belongs to the event loop of the router; everything that may block goes to a thread.
    """

    def __init__(
        self,
        settings: Settings,
        store: EpisodeStore,
        router: InferenceRouter,
        jobs: JobTable,
        runner: RunnerProcess | ExternalRunner,
    ) -> None:
        self.events = EventRing(settings.data_dir / "events.jsonl")
        self._settings = settings
        self._store = store
        self._router = router
        self._jobs = jobs
        self._runner = runner
        self._hold = Hold(settings.jobs_dir)
        self._known: dict[str, Any] = {}
        self._ended: set[str] | None = None
        self._since_ns = max((event["t_ns"] for event in self.events.latest(1)), default=time.time_ns())
        self._answers: int | None = None
        self._acted_s = float("-inf")

    @property
    def acting(self) -> bool:
        """Whether an action was answered within the last three seconds."""
        return time.monotonic() - self._acted_s < ACTING_S

    async def run(self) -> None:
        """Look until cancelled."""
        await asyncio.to_thread(
            self.events.add, "daemon", "info", f"the daemon started, version {brain_service.__version__}"
        )
        looks = 0
        while True:
            inference = self._router.status()
            answers = int(inference["total_us"]["count"])
            if self._answers is not None and answers != self._answers:
                self._acted_s = time.monotonic()
            self._answers = answers
            try:
                await asyncio.to_thread(self._look, inference, looks % SENSOR_LOOKS == 0)
            except (BrainError, OSError) as error:
                # brain.db is locked, or its medium is gone for a while: /health tells so; the next look finds it.
                log.debug("cannot look at every part", extra={"reason": str(error)})
            looks += 1
            await asyncio.sleep(LOOK_INTERVAL_S)

    def _look(self, inference: Mapping[str, Any], with_sensors: bool) -> None:
        self._look_at_models(inference)
        self._look_at_capture(self._store.status())
        if with_sensors:
            self._look_at_machine(read_sensors(self._settings.gates.sysfs))
        held = self._hold.status()
        if self._changed("hold", held["paused"], False):
            text = f"learning is paused: {held['reason']}" if held["paused"] else "learning goes on"
            self._note("learning", "info", text)
        restarts = self._runner.status()["restarts"]
        if self._changed("runner", restarts, 0):
            self._note("job", "warning", "the job runner died and was started again")
        self._look_at_jobs()

    def _look_at_models(self, status: Mapping[str, Any]) -> None:
        for rollback in status["rollbacks"][self._known.get("rollbacks", 0) :]:
            text = f"model {rollback['model_id']} was rolled back by itself: {rollback['evidence']}"
            self._note("model", "error", text)
        self._known["rollbacks"] = len(status["rollbacks"])
        active, before = status["active_model"], self._known.get("model")
        if self._changed("model", active, None):
            if active is None:
                self._note("model", "error", f"no model serves any more, {before} did")
            else:
                back = active == self._known.get("model before")
                rest = f", {before} did before" if before else ""
                self._note("model", "info", f"model {active} serves{' again' if back else ''}{rest}")
            self._known["model before"] = before
            self._known["backend"] = status["backend"]
        elif self._changed("backend", status["backend"], status["backend"]):
            used = next((why["reason"] for why in status["why"] if why["used"]), "")
            self._note("backend", "warning", f"actions come from {status['backend']} now: {used}")
        for name in ("safe_mode", "error"):
            told = status[name]
            if self._changed(name, told, None) and told:
                self._note("model", "error", f"{'safe mode: ' if name == 'safe_mode' else ''}{told}")
        deaths = status["worker_restarts"]
        if self._changed("deaths", deaths, 0) and deaths:
            self._note("backend", "warning", "a model's worker ended and was started again")

    def _look_at_capture(self, status: Mapping[str, Any]) -> None:
        free = status["free_bytes"]
        full = free is None or free < status["min_free_bytes"]
        if self._changed("full", full, False):
            text = "capture is full: no step is taken until there is room" if full else "capture has room again"
            self._note("capture", "error" if full else "info", text)
        problem = status["last_error"]
        if self._changed("capture", problem, None):
            text = f"capture fails: {problem}" if problem else "capture writes again"
            self._note("capture", "error" if problem else "info", text)

    def _look_at_machine(self, sensors: Sensors) -> None:
        if self._changed("voltage", bool(sensors.under_voltage), False):
            weak = bool(sensors.under_voltage)
            text = "under-voltage: the supply is too weak" if weak else "the supply is strong enough again"
            self._note("machine", "warning" if weak else "info", text)
        limit_c, now_c = self._settings.gates.max_temperature_c, sensors.temperature_c
        if limit_c is not None and now_c is not None:
            resume_c = limit_c - self._settings.gates.cool_down_c
            hot = now_c >= limit_c or (bool(self._known.get("hot")) and now_c > resume_c)
            if self._changed("hot", hot, False):
                text = f"hot: {limit_c:.0f} C reached, learning rests" if hot else f"cool again: {resume_c:.0f} C"
                self._note("machine", "warning" if hot else "info", text)

    def _look_at_jobs(self) -> None:
        ended = [job for job in self._jobs.list(RECENT_JOBS).jobs if job.state in ENDED]
        if self._ended is None:
            # What ended before the last event was told by the daemon that saw it.
            self._ended = {job.job_id for job in ended if (job.finished_ns or 0) <= self._since_ns}
        for job in reversed(ended):
            if job.job_id not in self._ended:
                self._note("job", _LEVEL_OF_JOB[job.state], _told(job), job.job_id)
        # A page of the newest is all that is asked for: what fell off it is not seen again.
        self._ended = {job.job_id for job in ended}

    def _changed(self, name: str, value: object, at_first: object) -> bool:
        before = self._known.get(name, at_first)
        self._known[name] = value
        return bool(before != value)

    def _note(self, kind: Kind, level: Level, text: str, job_id: str | None = None) -> None:
        self.events.add(kind, level, text, job_id)


def _told(job: Job) -> str:
    if job.state == "failed":
        return f"{job.kind} failed: {(job.error or {}).get('detail', 'nobody knows why')}"
    last = next((stage.details for stage in reversed(job.stages) if stage.status == "done" and stage.details), "")
    return f"{job.kind} {job.state}{f': {last}' if last else ''}"
