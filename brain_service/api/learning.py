"""Starts the loop when its triggers fire: the daemon alone sees sessions, episodes and jobs together."""

import asyncio
import logging
from datetime import datetime
from typing import Any

from brain_service.episodes.store import EpisodeStore
from brain_service.errors import BrainError
from brain_service.hardware.gate import Gate
from brain_service.inference.router import InferenceRouter
from brain_service.jobs.table import JobTable
from brain_service.jobs.triggers import Decision, Situation, decide
from brain_service.settings import Settings

__all__ = ["watch_triggers"]

log = logging.getLogger(__name__)

TRAININGS = ("train", "pipeline")


async def watch_triggers(settings: Settings, jobs: JobTable, store: EpisodeStore, router: InferenceRouter) -> None:
    """Look every `learning.check_interval_s` and start the loop when it is time; returns where no trigger is set.

    A job table or an episode directory that cannot be read for a while is asked again.
    """
    learning = settings.learning
    if learning.after_episodes is None and learning.daily_at is None:
        return
    gate, since, told = Gate(settings.gates), datetime.now(), ""
    while True:
        sessions = len(router.list_sessions())
        try:
            decision = await asyncio.to_thread(_look, settings, jobs, store, gate, since, sessions)
            if decision.start:
                log.info("the loop starts by itself: %s", decision.reason)
            elif decision.reason != told:
                log.info("the loop does not start: %s", decision.reason)
            told = decision.reason
        except BrainError as error:
            log.warning("cannot look for triggers", extra={"reason": error.detail})
        await asyncio.sleep(learning.check_interval_s)


def _look(
    settings: Settings, jobs: JobTable, store: EpisodeStore, gate: Gate, since: datetime, sessions: int
) -> Decision:
    learning, last = settings.learning, jobs.latest(TRAININGS)
    last_ns = last.created_ns if last is not None else 0
    decision = decide(
        learning,
        Situation(
            now=datetime.now(),
            watching_since=since,
            last_run=datetime.fromtimestamp(last_ns / 1e9) if last is not None else None,
            new_episodes=store.ended_since(last_ns),
            open_sessions=sessions,
            open_episodes=int(store.status()["open_episodes"]),
            gate=gate.reason(),
            training=last is not None and last.state in ("queued", "running"),
        ),
    )
    if decision.start:
        body: dict[str, Any] = {"preset": learning.preset, "target": learning.target, "priority": "low"}
        body |= {"steps": learning.steps} if learning.steps else {}
        jobs.create("pipeline", body)
    return decision
