"""One snapshot a second for all who look, gathered off the event loop, and only while somebody does."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson

import brain_service
from brain_service.api.services import Services
from brain_service.api.status import health_checks
from brain_service.dashboard.curve import LearningCurve
from brain_service.dashboard.parts import (
    capture_part,
    inference_part,
    job_part,
    machine_part,
    model_part,
    sessions_part,
    strain,
)
from brain_service.dashboard.state import state_of
from brain_service.errors import BrainError
from brain_service.hardware.thermals import read_sensors
from brain_service.jobs.folder import JobFolder
from brain_service.jobs.hold import Hold
from brain_service.jobs.job import Job

__all__ = ["Snapshot", "Snapshots"]

INTERVAL_S = 1.0
SHOWN_JOBS = 12
SHOWN_MODELS = 8
SHOWN_EVENTS = 60
SLOW_LOOKS = 5
"""Bundles and sensors are looked at every so many snapshots: they cost more and change less."""
_LEARNING = ("train", "pipeline", "sanity-check")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment as JSON, and `changes`: the parts that differ from the snapshot before."""

    number: int
    taken_s: float
    parts: Mapping[str, Any]
    whole: bytes
    changes: bytes


class Snapshots:
    """Gathers and keeps the newest snapshot. Belongs to the event loop of the services."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._hold = Hold(services.settings.jobs_dir)
        self._gathering = asyncio.Lock()
        self._newest: Snapshot | None = None
        self._curve: LearningCurve | None = None
        self._slow: dict[str, Any] = {}
        self._looks = 0

    async def newest(self) -> Snapshot:
        """Return a snapshot that is at most a second old."""
        async with self._gathering:
            if self._newest is None or time.monotonic() - self._newest.taken_s >= INTERVAL_S:
                self._newest = await self._gather()
            return self._newest

    async def follow(self, still_allowed: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Yield server-sent events: `snapshot` with everything first, then `changes` each second.

        Ends when the viewer's token holds no more.
        """
        seen = -1
        while still_allowed():
            snapshot = await self.newest()
            if snapshot.number == seen + 1 and seen >= 0:
                yield _frame(b"changes", snapshot.changes)
            elif snapshot.number != seen:
                yield _frame(b"snapshot", snapshot.whole)
            seen = snapshot.number
            await asyncio.sleep(max(0.05, snapshot.taken_s + INTERVAL_S - time.monotonic()))

    async def _gather(self) -> Snapshot:
        services = self._services
        # Asked on the event loop, where these live; what may block goes to a thread.
        inference = services.router.status()
        sessions = sessions_part(services.router.list_sessions(), services.settings)
        slow = self._looks % SLOW_LOOKS == 0 or inference["active_model"] != self._slow.get("active")
        self._looks += 1
        if slow:
            models = [model_part(model) for model in (await services.router.models())[:SHOWN_MODELS]]
            self._slow |= {"models": models, "active": inference["active_model"]}
        checks = {name: check.to_json() for name, check in (await health_checks(services)).items()}
        parts = await asyncio.to_thread(self._parts, inference, checks, slow)
        parts["sessions"] = sessions
        return await asyncio.to_thread(self._encode, parts)

    def _parts(self, inference: dict[str, Any], checks: dict[str, Any], slow: bool) -> dict[str, Any]:
        services, now_ns = self._services, time.time_ns()
        settings, capture = services.settings, services.store.status()
        if slow or "sensors" not in self._slow:
            self._slow["sensors"] = read_sensors(settings.gates.sysfs)
        held = self._hold.status()
        try:
            jobs, problem = services.jobs.list(SHOWN_JOBS).jobs, ""
            running = tuple(job for job, _ in services.jobs.running())
        except BrainError as error:
            jobs, running, problem = (), (), error.detail
        state = state_of(
            checks,
            inference,
            capture,
            running,
            acting=services.observer.acting,
            paused=held["reason"] if held["paused"] else "",
            strained=strain(self._slow["sensors"], settings),
        )
        listed = [job for job in running if job not in jobs] + list(jobs)
        return {
            "now_ns": now_ns,
            "about": {
                "version": brain_service.__version__,
                "host": socket.gethostname(),
                "started_ns": services.started_ns,
            },
            "state": asdict(state),
            "inference": inference_part(inference, settings),
            "capture": capture_part(capture, settings),
            "jobs": {"problem": problem, "list": [job_part(job, now_ns) for job in listed]},
            "learning": held | {"curve": self._learn(listed)},
            "models": self._slow["models"],
            "machine": machine_part(self._slow["sensors"], settings),
            "health": checks,
            "events": services.observer.events.latest(SHOWN_EVENTS),
        }

    def _learn(self, jobs: list[Job]) -> dict[str, Any] | None:
        """Return the curve of the training that runs, else of the last one that ran."""
        learning = [job for job in jobs if job.kind in _LEARNING and job.started_ns is not None]
        folders = {job.job_id: JobFolder(self._services.settings.jobs_dir, job.job_id) for job in learning}
        # One elsewhere may run beside one here, and have nothing to tell yet.
        running = [job for job in learning if job.state == "running"]
        telling = [job for job in running if folders[job.job_id].events.exists()]
        job = next(iter([*telling, *running, *learning]), None)
        if job is None:
            return None
        if self._curve is None or self._curve.job_id != job.job_id:
            self._curve = LearningCurve(job.job_id, folders[job.job_id].events)
        self._curve.look()
        return self._curve.to_json() | {"kind": job.kind, "state": job.state}

    def _encode(self, parts: dict[str, Any]) -> Snapshot:
        before = self._newest
        whole = orjson.dumps(parts)
        # Read back: parts that grow in place would be equal to themselves the next time.
        kept = orjson.loads(whole)
        known = {} if before is None else before.parts
        changed = {name: part for name, part in kept.items() if known.get(name) != part}
        number = 0 if before is None else before.number + 1
        return Snapshot(number, time.monotonic(), kept, whole, orjson.dumps(changed))


def _frame(event: bytes, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (event, data)
