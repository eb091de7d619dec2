"""The way of an action: session, deadline, worker, answer. The daemon's one entry to inference.

Nothing here imports a model runtime and nothing blocks the event loop.
"""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brain_service.errors import (
    BrainError,
)
from brain_service.export.manifest import Manifest
from brain_service.inference.calls import InferReply, InferRequest, SessionInfo
from brain_service.inference.fleet import LEAVE_SAFE_MODE, Fleet
from brain_service.inference.keeping import SessionKeeper
from brain_service.inference.oversight import Oversight
from brain_service.inference.sessions import SessionTable
from brain_service.inference.stepping import Stepper
from brain_service.metrics import HistogramFamily
from brain_service.settings import InferenceSettings

__all__ = ["InferReply", "InferRequest", "InferenceRouter", "SessionInfo"]

_HOUSEKEEPING_S = 1.0
_MEANWHILE_STEPS = 64
"""Inputs kept beyond those that a rebuilt state has to see: what a session asks while they are replayed."""


class InferenceRouter:
    """Sessions on the active model, and the swap of models under them.

    All methods belong to one event loop. `settings` bounds sessions, deadlines and worker times; compiled
    programs are kept in `cache_dir`, live sessions over a graceful restart in `sessions_dir`. `on_ended` is called
    with the id of a session that ended without its client's asking.
    """

    def __init__(
        self,
        models_dir: Path,
        settings: InferenceSettings,
        cache_dir: Path,
        on_ended: Callable[[str], None] = lambda _: None,
        sessions_dir: Path | None = None,
    ) -> None:
        self._settings = settings
        self._fleet = Fleet(models_dir, settings, cache_dir)
        kept_steps = settings.replay_steps + _MEANWHILE_STEPS if settings.on_swap == "replay" else 0
        self._sessions = SessionTable(settings.max_sessions, settings.session_idle_s, on_ended, kept_steps)
        self._keeper = SessionKeeper(sessions_dir, self._sessions)
        self._oversight = Oversight(self._fleet, self._sessions, settings)
        self._stepper = Stepper(self._sessions, self._oversight, settings)
        self._tasks: list[asyncio.Task[None]] = []
        self._kept_s = 0.0

    async def start(self, safe_mode: str = "") -> None:
        """Begin to load the active model, if there is one, with its saved sessions, and return at once.

        With `safe_mode`, a reason, nothing is loaded before an operator activates a model.
        """
        self._kept_s = asyncio.get_running_loop().time()
        self._tasks = [
            asyncio.create_task(self._keep_house(), name="the router's housekeeping"),
            asyncio.create_task(self._oversight.run(), name="the router's oversight"),
        ]
        if safe_mode:
            self._fleet.error = safe_mode
        else:
            self._tasks.append(asyncio.create_task(self._open()))

    def stuck(self, limit_s: float) -> str:
        """Tell which background task is dead, or has not come round for `limit_s`; nothing while all is well."""
        dead = [task.get_name() for task in self._tasks[:2] if task.done()]
        if dead:
            return f"{dead[0]} has died"
        idle_s = asyncio.get_running_loop().time() - self._kept_s
        return f"the router's housekeeping has not come round for {idle_s:.0f} s" if idle_s > limit_s else ""

    async def close(self) -> None:
        """Save and end every session and stop every worker."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._oversight.close()
        await self._keeper.save()
        for session in self._sessions.all():
            self._sessions.end(session.session_id)
        await self._fleet.close()

    @property
    def ready(self) -> bool:
        """Whether an action would be answered now: the active model is warm and checked, its sessions are back."""
        active = self._fleet.active
        return active is not None and active.ready and self._sessions.restoring is None

    async def create_session(self, session_id: str | None = None) -> SessionInfo:
        """Start a session on the active model; its id is made up here unless one is given.

        Raises:
            UnavailableError: no model is active; the message says why and what to do.
            TooManyError: the bound on sessions is reached.
            ConflictError: a session of that id is live.
        """
        return self._sessions.create(self._fleet.require_active(), session_id).info()

    async def reset_session(self, session_id: str) -> SessionInfo:
        """Put a session at step 0 with a zero state, on the model that is active now.

        Raises:
            NotFoundError: there is no such session.
            UnavailableError: no model is active; the session is unchanged.
        """
        session = self._sessions.get(session_id)
        old_model, old_row, old_ticket = session.model, session.row, session.ticket
        session.begin(self._fleet.require_active())
        old_model.give_back(old_row, old_ticket)
        return session.info()

    async def end_session(self, session_id: str) -> None:
        """End a session and free its state.

        Raises:
            NotFoundError: there is no such session.
        """
        self._sessions.end(session_id)

    def get_session(self, session_id: str) -> SessionInfo:
        """Describe a session.

        Raises:
            NotFoundError: there is no such session.
        """
        return self._sessions.get(session_id).info()

    def manifest(self, session_id: str | None = None) -> Manifest:
        """Return the manifest of the model that a session runs on; without one, that of the active model.

        Raises:
            NotFoundError: there is no such session.
            UnavailableError: no model is active; the message says why and what to do.
        """
        if session_id is None:
            return self._fleet.require_active().manifest
        return self._sessions.get(session_id).model.manifest

    def list_sessions(self) -> list[SessionInfo]:
        """Describe the live sessions, oldest first."""
        return [session.info() for session in self._sessions.all()]

    async def activate(self, model_id: str, *, by_itself: bool = False) -> str | None:
        """Load, verify, warm and check a bundle in a new worker, try it in shadow, then serve it.

        Returns what the canary saw, or why it was skipped; None where the model served already. `by_itself`: no
        operator asked for this very model.

        Raises:
            NotFoundError, CorruptDataError, UnavailableError, ConflictError: what served before goes on serving;
                see `Oversight.activate`.
        """
        return await self._oversight.activate(model_id, by_itself=by_itself)

    async def rollback(self) -> str:
        """Serve the previous model again and return its id; see `Fleet.rollback`.

        Raises:
            ConflictError: there is no previous model, or it was rejected.
        """
        return await self._oversight.rollback()

    async def models(self) -> list[dict[str, Any]]:
        """Return every bundle, newest first; see `Fleet.describe`."""
        return await self._fleet.describe()

    async def model(self, model_id: str) -> dict[str, Any]:
        """Return one bundle; see `Fleet.describe_one`.

        Raises:
            NotFoundError: there is no such bundle.
            CorruptDataError: its manifest cannot be.
        """
        return await self._fleet.describe_one(model_id)

    @property
    def durations(self) -> HistogramFamily:
        """Durations of the answered steps in seconds, by backend and part."""
        return self._stepper.durations

    def status(self) -> dict[str, Any]:
        """Return the state of inference for /health; from memory, at once.

        `state` is `serving`, `restarting`, `loading`, `failed` or `no-model`. Latencies are microseconds over
        the last 1024 answers.
        """
        fleet = self._fleet
        if fleet.active is not None:
            state = "serving" if fleet.active.ready else "restarting"
        elif fleet.loading is not None:
            state = "loading"
        else:
            state = "failed" if fleet.error else "no-model"
        loaded = fleet.loaded()
        return {
            "ready": self.ready,
            "state": state,
            "active_model": fleet.active.model_id if fleet.active else None,
            "active_created_ns": fleet.active.manifest.created_ns if fleet.active else None,
            "previous_model": fleet.previous.model_id if fleet.previous else None,
            "backend": fleet.active.backend if fleet.active else None,
            "why": fleet.active.status()["why"] if fleet.active else [],
            "error": fleet.error if fleet.active is None else None if self.ready else fleet.active.last_error,
            "sessions": len(self._sessions),
            "evicted_sessions": self._sessions.evicted,
            **self._stepper.status(),
            "worker_restarts": sum(model["worker_restarts"] for model in loaded),
            "warnings": sorted(
                {w for session in self._sessions.all() for w in (*session.model.warnings, *session.warnings)}
                | set(fleet.active.warnings if fleet.active else ())
            ),
            "safe_mode": f"{fleet.safe_mode}. {LEAVE_SAFE_MODE}" if fleet.safe_mode else None,
            "restored_sessions": self._keeper.status(),
            "models": loaded,
        } | self._oversight.status()

    async def infer(self, request: InferRequest) -> InferReply:
        """Answer the action for one observation before its deadline.

        The session's state advances once per answered step, and only then: after any error the next step is
        `next_step`, which every error of a live session carries. A repeat of the answered step gets the stored
        answer.

        Raises:
            ConflictError: the session is unknown, ended or evicted; the step is old or leaves a gap; or the
                session was reset while the step was on its way.
            InvalidError: a field of the observation, the executed action, reward, step or deadline is wrong.
            DeadlineExceededError: the answer would have been late; it was dropped.
            UnavailableError: the worker died or is being started, or the model gave no finite action.
        """
        return await self._stepper.infer(request)

    async def _open(self) -> None:
        await self._keeper.read()
        await self._fleet.load_active()
        await self._keeper.restore(self._fleet.active, unclean=self._fleet.starts.unclean)
        await self._oversight.begin()

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(min(_HOUSEKEEPING_S, self._settings.session_idle_s / 2))
            self._kept_s = asyncio.get_running_loop().time()
            self._sessions.evict_idle()
            with contextlib.suppress(BrainError):
                await self._fleet.drop_drained()
            with contextlib.suppress(BrainError):
                await self._oversight.keep()
            await self._fleet.note_a_good_start()
