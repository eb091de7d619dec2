"""The way of one step: its turn, its inputs in the session's row, the worker, the answer. Nothing here blocks."""

import asyncio
import time
from dataclasses import replace
from typing import Any

from brain_service.errors import BrainError, ConflictError, DeadlineExceededError, InvalidError, UnavailableError
from brain_service.inference.calls import InferReply, InferRequest
from brain_service.inference.client import Ticket, WorkerLostError
from brain_service.inference.latency import LatencyWindow
from brain_service.inference.oversight import Oversight
from brain_service.inference.protocol import Done, Status
from brain_service.inference.sessions import Session, SessionTable
from brain_service.inference.why import explain
from brain_service.logs import MODEL_ID, SESSION_ID
from brain_service.metrics import HistogramFamily
from brain_service.observation import check_observation
from brain_service.settings import InferenceSettings
from brain_service.spec import check_values, from_vector, to_vector
from brain_service.trees import flatten, unflatten

__all__ = ["Stepper"]


class Stepper:
    """Answers steps of the sessions in a table, one at a time a session; belongs to one event loop."""

    def __init__(self, sessions: SessionTable, oversight: Oversight, settings: InferenceSettings) -> None:
        self._sessions = sessions
        self._oversight = oversight
        self._settings = settings
        self._compute_us = LatencyWindow()
        self._total_us = LatencyWindow()
        self._deadline_misses = 0
        self._nonfinite = 0
        self._retried = 0
        self.durations = HistogramFamily(
            "brain_infer_duration_seconds",
            "Time of an answered step, from its receipt: until the computation, in it, and altogether.",
            ("backend", "part"),
        )

    def status(self) -> dict[str, Any]:
        """Return latencies in microseconds over the last 1024 answers, and what went wrong how often."""
        return {
            "compute_us": self._compute_us.summary(),
            "total_us": self._total_us.summary(),
            "deadline_misses": self._deadline_misses,
            "nonfinite_answers": self._nonfinite,
            "retried_steps": self._retried,
        }

    async def infer(self, request: InferRequest) -> InferReply:
        """Answer one step; see `InferenceRouter.infer`."""
        received_ns = request.received_ns or time.monotonic_ns()
        session = self._sessions.for_infer(request.session_id)
        SESSION_ID.set(session.session_id)
        MODEL_ID.set(session.model.model_id)
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
        if session.turn.free:
            # The usual way, without a timer.
            await session.turn.acquire()
            return
        try:
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
        image = model.manifest.image
        values = check_observation(request.observation, observation, image.path if image else None)
        if request.executed_action is not None and session.next_step > 0:
            action = flatten(request.executed_action, "executed_action")
            check_values(action, model.manifest.spec.action, "executed_action")
        pixels = None
        if image is not None:
            # Off the event loop: a large picture takes milliseconds.
            pixels = await asyncio.to_thread(image.pixels, _sent(values[image.path], image.path))
            self._require_same(session, life)
        while session.ticket is not None and not session.ticket.settled:
            # The row belongs to a step whose client gave up on it; its result will be dropped.
            await self._settled(session.ticket, session, deadline_ns)
            self._require_same(session, life)
        D, A = model.manifest.observation_size, model.manifest.action_size
        first = session.next_step == 0
        row.request[0, :D] = to_vector(values, observation)
        row.request[0, D : D + A] = session.previous_action
        told = model.manifest.usual_reward if request.reward is None else request.reward
        row.request[0, D + A] = 0.0 if first else told
        row.request[0, D + A + 1] = first
        if pixels is not None:
            model.layout.image_of(row.request[0])[...] = pixels
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
        queue_us = max(0.0, (done.start_ns - received_ns) / 1e3)
        reply = InferReply(
            action=unflatten(action),
            step=session.next_step,
            model_id=model.model_id,
            backend=backend,
            state_step=session.state_steps,
            timings_us={
                "queue": queue_us,
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
        self.durations.of(backend, "queue").observe(queue_us / 1e6)
        self.durations.of(backend, "compute").observe(compute_us / 1e6)
        self.durations.of(backend, "total").observe(total_us / 1e6)
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


def _sent(value: Any, path: str) -> Any:
    """Return an image that came with the request.

    Raises:
        InvalidError: it is the reference of one that some episode may hold.
    """
    if isinstance(value, str):
        field = f"observation/{path}"
        raise InvalidError(f"{field}: {value!r} refers to an image; send the image itself", field=field)
    return value


def _late(session: Session) -> DeadlineExceededError:
    return DeadlineExceededError(
        f"session {session.session_id}: no answer for step {session.next_step} before its deadline; it was "
        "dropped and the state is unchanged. Send the step again with a fresh observation"
    )
