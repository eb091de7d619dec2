"""The way of an action: session, deadline, worker, answer. The daemon's one entry to inference.

Nothing here imports a model runtime and nothing blocks the event loop.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from brain_service.errors import (
    BrainError,
    ConflictError,
    DeadlineExceededError,
    UnavailableError,
)
from brain_service.export.manifest import Manifest
from brain_service.inference.calls import InferReply, InferRequest, SessionInfo
from brain_service.inference.client import Ticket, WorkerLostError
from brain_service.inference.fleet import LEAVE_SAFE_MODE, Fleet
from brain_service.inference.keeping import SessionKeeper
from brain_service.inference.latency import LatencyWindow
from brain_service.inference.oversight import Oversight
from brain_service.inference.protocol import Done, Status
from brain_service.inference.sessions import Session, SessionTable
from brain_service.inference.why import explain
from brain_service.settings import InferenceSettings
from brain_service.spec import check_observation, check_values, flatten, from_vector, to_vector, unflatten

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
        self._tasks: list[asyncio.Task[None]] = []
        self._compute_us = LatencyWindow()
        self._total_us = LatencyWindow()
        self._deadline_misses = 0
        self._nonfinite = 0
        self._retried = 0

    async def start(self) -> None:
        """Begin to load the active model, if there is one, with its saved sessions, and return at once."""
        self._tasks = [
            asyncio.create_task(self._open()),
            asyncio.create_task(self._keep_house()),
            asyncio.create_task(self._oversight.run()),
        ]

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
            "previous_model": fleet.previous.model_id if fleet.previous else None,
            "backend": fleet.active.backend if fleet.active else None,
            "why": fleet.active.status()["why"] if fleet.active else [],
            "error": fleet.error if fleet.active is None else None if self.ready else fleet.active.last_error,
            "sessions": len(self._sessions),
            "evicted_sessions": self._sessions.evicted,
            "compute_us": self._compute_us.summary(),
            "total_us": self._total_us.summary(),
            "deadline_misses": self._deadline_misses,
            "nonfinite_answers": self._nonfinite,
            "retried_steps": self._retried,
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
        received_ns = request.received_ns or time.monotonic_ns()
        session = self._sessions.for_infer(request.session_id)
        session.used_s = time.monotonic()
        try:
            request.check()
            deadline_ms = request.deadline_ms or self._settings.deadline_ms
            deadline_ns = received_ns + int(deadline_ms * 1e6)
            await self._take_turn(session, deadline_ns)
            try:
                reply = await self._infer(session, request, received_ns, deadline_ns)
                return replace(reply, why=explain(session.model, reply)) if request.why else reply
            finally:
                session.turn.release()
        except BrainError as error:
            self._deadline_misses += isinstance(error, DeadlineExceededError)
            error.members.setdefault("next_step", session.next_step)
            raise

    async def _take_turn(self, session: Session, deadline_ns: int) -> None:
        """Wait until no other request of this session is between its submission and its answer.

        Without turns a request that arrives just as an answer does could write its inputs over the row before
        that answer is taken up.
        """
        life = session.life
        try:
            # A free turn is taken without a pass of the event loop. One that was just released to a waiter is
            # not free, though `locked()` says so: the deadline holds for every wait.
            async with asyncio.timeout((deadline_ns - time.monotonic_ns()) / 1e9):
                await session.turn.acquire()
        except TimeoutError as error:
            raise _late(session) from error
        try:
            self._require_same(session, life)
        except ConflictError:
            session.turn.release()
            raise

    async def _infer(
        self, session: Session, request: InferRequest, received_ns: int, deadline_ns: int
    ) -> InferReply:
        stored = session.answer_for(request.step)
        if stored is not None:
            return stored
        row, model, life = session.row, session.model, session.life
        observation = model.manifest.spec.observation
        values = check_observation(request.observation, observation)
        if request.executed_action is not None and session.next_step > 0:
            action = flatten(request.executed_action, "executed_action")
            check_values(action, model.manifest.spec.action, "executed_action")
        while session.ticket is not None and not session.ticket.settled:
            # The row belongs to a step whose client gave up on it; its result will be dropped.
            await self._settled(session.ticket, session, deadline_ns)
            self._require_same(session, life)
        D, A = model.manifest.observation_size, model.manifest.action_size
        first = session.next_step == 0
        row.request[0, :D] = to_vector(values, observation)
        row.request[0, D : D + A] = session.previous_action
        row.request[0, D + A] = 0.0 if first else request.reward
        row.request[0, D + A + 1] = first
        if time.monotonic_ns() > deadline_ns:
            raise _late(session)
        try:
            done, backend = await self._compute(session, deadline_ns)
            self._require_same(session, life)
            if done.status is Status.EXPIRED or time.monotonic_ns() > deadline_ns:
                raise _late(session)
        except DeadlineExceededError:
            self._oversight.late(model)
            raise
        if done.status is Status.NONFINITE:
            self._nonfinite += 1
            self._oversight.broken(model)
            raise UnavailableError(
                f"model {model.model_id} gave NaN or an infinity at step {session.next_step}; the state is "
                "unchanged. Check the observation's range, reset the session, or roll the model back"
            )
        return self._accept(session, done, backend, received_ns)

    async def _compute(self, session: Session, deadline_ns: int) -> tuple[Done, str]:
        """Run the step whose inputs lie in the session's row; return the answer and the backend that gave it.

        When the worker dies under it the step is given once more to the backend that has taken over: it reads the
        same slot, so the state advances once. Not more often: an input that kills workers must not kill them all.
        """
        model, row, life = session.model, session.row, session.life
        ticket = session.ticket = model.submit(row, session.slot, deadline_ns)
        try:
            return await self._answer(ticket, session, deadline_ns), ticket.backend
        except WorkerLostError:
            self._require_same(session, life)
            if not model.ready or time.monotonic_ns() > deadline_ns:
                raise
        ticket = session.ticket = model.submit(row, session.slot, deadline_ns)
        self._retried += 1
        return await self._answer(ticket, session, deadline_ns), ticket.backend

    def _accept(self, session: Session, done: Done, backend: str, received_ns: int) -> InferReply:
        model = session.model
        manifest = model.manifest
        chunk = session.row.response.reshape(manifest.action_horizon, manifest.action_size).copy()
        action = from_vector(chunk[0], manifest.spec.action)
        session.warnings = session.period.observe(received_ns)
        compute_us = (done.end_ns - done.start_ns) / 1e3
        total_us = (time.monotonic_ns() - received_ns) / 1e3
        reply = InferReply(
            action=unflatten(action),
            step=session.next_step,
            model_id=model.model_id,
            backend=backend,
            state_step=session.state_steps,
            timings_us={
                "queue": max(0.0, (done.start_ns - received_ns) / 1e3),
                "compute": compute_us,
                "total": total_us,
            },
            chunk=chunk,
            warnings=(*model.warnings, *session.warnings),
            bucket=done.bucket,
            row=done.place,
            model_since_step=session.since_step,
        )
        request = (
            session.row.request[0].copy() if session.history.maxlen or self._oversight.wants_requests else None
        )
        if request is not None:
            session.history.append(request)
        # Called when this answer is on its way out: whoever watches it does not delay it.
        asyncio.get_running_loop().call_soon(
            self._oversight.answered,
            session,
            model,
            request,
            chunk[0],
            session.previous_action if session.next_step else None,
        )
        session.slot = 1 - session.slot
        session.next_step += 1
        session.state_steps += 1
        session.previous_action = to_vector(action, manifest.spec.action)
        session.stored = reply
        self._compute_us.add(compute_us)
        self._total_us.add(total_us)
        return reply

    async def _answer(self, ticket: Ticket, session: Session, deadline_ns: int) -> Done:
        """Wait for the worker's answer, at most until the deadline."""

        def expire() -> None:
            if not ticket.waiter.done():
                ticket.waiter.set_exception(_late(session))

        remaining_s = (deadline_ns - time.monotonic_ns()) / 1e9
        timer = asyncio.get_running_loop().call_later(remaining_s, expire)
        try:
            return await ticket.waiter
        finally:
            timer.cancel()

    async def _settled(self, ticket: Ticket, session: Session, deadline_ns: int) -> None:
        """Wait until the worker no longer touches the row, at most until the deadline."""
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket.when_settled(lambda: None if settled.done() else settled.set_result(None))
        try:
            async with asyncio.timeout((deadline_ns - time.monotonic_ns()) / 1e9):
                await settled
        except TimeoutError as error:
            self._oversight.late(session.model)
            raise _late(session) from error

    def _require_same(self, session: Session, life: int) -> None:
        if session.life != life or not self._sessions.holds(session):
            reason = self._sessions.reason(session.session_id) or "was reset or ended"
            raise ConflictError(
                f"session {session.session_id} {reason} while its step was on its way", field="session_id"
            )

    async def _open(self) -> None:
        await self._keeper.read()
        await self._fleet.load_active()
        await self._keeper.restore(self._fleet.active, unclean=self._fleet.starts.unclean)
        await self._oversight.begin()

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(min(_HOUSEKEEPING_S, self._settings.session_idle_s / 2))
            self._sessions.evict_idle()
            with contextlib.suppress(BrainError):
                await self._fleet.drop_drained()
            with contextlib.suppress(BrainError):
                await self._oversight.keep()
            await self._fleet.note_a_good_start()


def _late(session: Session) -> DeadlineExceededError:
    return DeadlineExceededError(
        f"session {session.session_id}: no answer for step {session.next_step} before its deadline; it was "
        "dropped and the state is unchanged. Send the step again with a fresh observation"
    )
