"""Sessions: one robot's recurrent state on one model, its steps counted strictly, its last answer kept."""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from brain_service.errors import ConflictError, NotFoundError, TooManyError, UnavailableError
from brain_service.inference.arena import Row
from brain_service.inference.calls import InferReply, SessionInfo
from brain_service.inference.client import Ticket
from brain_service.inference.served_model import ServedModel

if TYPE_CHECKING:
    from jaxtyping import Float32

__all__ = ["ControlPeriod", "Session", "SessionTable"]

log = logging.getLogger(__name__)

_REMEMBERED = 1024


class ControlPeriod:
    """Watches how often a robot asks, against the period that its model was trained at.

    A mean over about ten intervals; off by more than 20 % it gives a warning: the model's memory counts in steps.
    """

    _WEIGHT = 0.1
    _SETTLED = 10
    _TOLERANCE = 0.2

    def __init__(self, trained_s: float | None) -> None:
        self._trained_s = trained_s
        self._last_ns = 0
        self._mean_s = 0.0
        self._intervals = -1

    def observe(self, received_ns: int) -> tuple[str, ...]:
        """Take in the receipt of a step and return the warnings that its answer carries."""
        if self._trained_s is None:
            return ()
        interval_s, self._last_ns = (received_ns - self._last_ns) / 1e9, received_ns
        self._intervals += 1
        if self._intervals == 0:
            return ()
        weight = max(self._WEIGHT, 1.0 / self._intervals)
        self._mean_s += weight * (interval_s - self._mean_s)
        if self._intervals < self._SETTLED or abs(self._mean_s / self._trained_s - 1.0) <= self._TOLERANCE:
            return ()
        return (
            f"control period {self._mean_s * 1e3:.3g} ms is more than {self._TOLERANCE:.0%} off the trained "
            f"{self._trained_s * 1e3:.3g} ms",
        )


class Turn(asyncio.Lock):
    """A lock that knows whether it is to be had at once: one just released to a waiter is not, though not held."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting = 0

    @property
    def free(self) -> bool:
        """Whether `acquire` would return without a pass of the event loop."""
        return self._waiting == 0 and not self.locked()

    async def acquire(self) -> Literal[True]:
        """Take the lock, in the order of asking."""
        if self.free:
            return await super().acquire()
        self._waiting += 1
        try:
            return await super().acquire()
        finally:
            self._waiting -= 1


class Session:
    """One robot's state: a row of its model's arena, and where it stands.

    `slot` says which carry slot of the row holds the state; `previous_action` [A] is the last answered action.
    `turn` lets one request at a time use the row. `life` counts the beginnings: it tells a reset from a move to
    another model, which happens between two turns. `history` keeps the last `kept_steps` answered requests
    [R], oldest first, for a state to be rebuilt from.
    """

    def __init__(self, session_id: str, model: ServedModel, kept_steps: int = 0) -> None:
        self.session_id = session_id
        self.created_s = time.monotonic()
        self.turn = Turn()
        self.life = 0
        self.history: deque[Float32[np.ndarray, "R"]] = deque(maxlen=kept_steps)
        self.begin(model)

    def begin(self, model: ServedModel) -> None:
        """Start at step 0 from the zero state on a row of `model`.

        Raises:
            UnavailableError: the model has no free row.
        """
        self.move(model, model.take_row(), slot=0, next_step=0, state_steps=0)
        self.life += 1
        self.history.clear()
        self.stored: InferReply | None = None
        self.previous_action: Float32[np.ndarray, "A"] = np.zeros(model.manifest.action_size, np.float32)
        self.warnings: tuple[str, ...] = ()
        self.used_s = time.monotonic()

    def move(self, model: ServedModel, row: Row, *, slot: int, next_step: int, state_steps: int) -> None:
        """Stand on a row of `model` whose carry `slot` has seen `state_steps` steps; the former row stays."""
        self.model = model
        self.row = row
        self.slot = slot
        self.next_step = self.since_step = next_step
        self.state_steps = state_steps
        self.ticket: Ticket | None = None
        self.period = ControlPeriod(model.manifest.control_period_s)

    def release(self) -> None:
        """Give the row back, once a step that is still on its way no longer touches it."""
        self.model.give_back(self.row, self.ticket)

    def answer_for(self, step: int | None) -> InferReply | None:
        """Return the stored answer if `step` is the one answered last, None if it is the next one.

        Raises:
            ConflictError: an older step, or a gap.
        """
        if step is None or step == self.next_step:
            return None
        if step == self.next_step - 1:
            return self.stored
        kind = "older than the last answered step" if step < self.next_step else "a gap"
        raise ConflictError(
            f"session {self.session_id}: step {step} is {kind}; the next step is {self.next_step}. "
            "Send that, or reset the session to begin an episode",
            field="step",
        )

    def info(self) -> SessionInfo:
        """Describe the session."""
        now_s = time.monotonic()
        return SessionInfo(
            session_id=self.session_id,
            model_id=self.model.model_id,
            backend=self.model.backend,
            next_step=self.next_step,
            age_s=now_s - self.created_s,
            idle_s=now_s - self.used_s,
            control_period_s=self.model.manifest.control_period_s,
            action_horizon=self.model.manifest.action_horizon,
            model_since_step=self.since_step,
            state_steps=self.state_steps,
        )


class SessionTable:
    """All live sessions, bounded, with the idle ones evicted.

    `on_ended(session_id)` is called when one ends that no client asked to end. `kept_steps` is the length of each
    session's history. `restoring` holds the reason while sessions of before are still to come back: an unknown
    one may be among them. `lost` tells what became of the sessions of before, where they did not come back.
    """

    def __init__(
        self,
        max_sessions: int,
        idle_s: float,
        on_ended: Callable[[str], None] = lambda _: None,
        kept_steps: int = 0,
    ) -> None:
        self.evicted = 0
        self.restoring: str | None = None
        self.lost: str | None = None
        self.idle_s = idle_s
        self._on_ended = on_ended
        self._max_sessions = max_sessions
        self._kept_steps = kept_steps
        self._sessions: dict[str, Session] = {}
        self._gone: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def create(self, model: ServedModel, session_id: str | None = None) -> Session:
        """Start a session on `model`; its id is made up here unless one is given, as one that comes back has.

        Raises:
            ConflictError: a session of that id is live.
            TooManyError: the bound on sessions is reached.
            UnavailableError: the model has no free row.
        """
        self.evict_idle()
        if session_id in self._sessions:
            raise ConflictError(f"session {session_id} is live; reset or end it", field="session_id")
        if len(self._sessions) >= self._max_sessions:
            raise TooManyError(
                f"{len(self._sessions)} sessions are live, the bound is {self._max_sessions}; "
                "end one (DELETE /sessions/{id}) or raise inference.max_sessions"
            )
        session = Session(session_id or secrets.token_hex(8), model, self._kept_steps)
        self._sessions[session.session_id] = session
        return session

    def get(self, session_id: str) -> Session:
        """Return a live session.

        Raises:
            NotFoundError: it never was, was ended, or was evicted.
            UnavailableError: it may be among those that are still being restored.
        """
        session = self._sessions.get(session_id)
        if session is None:
            raise NotFoundError(self._absence(session_id), field="session_id")
        return session

    def for_infer(self, session_id: str) -> Session:
        """Return a live session for a step, never a fresh one in place of a lost one.

        Raises:
            ConflictError: it never was, was ended, or was evicted: its hidden state is gone.
            UnavailableError: it may be among those that are still being restored.
        """
        session = self._sessions.get(session_id)
        if session is None:
            raise ConflictError(self._absence(session_id), field="session_id")
        return session

    def holds(self, session: Session) -> bool:
        """Tell whether `session` is still live."""
        return self._sessions.get(session.session_id) is session

    def end(self, session_id: str) -> None:
        """End a session and free its row.

        Raises:
            NotFoundError: there is no such session.
        """
        session = self.get(session_id)
        del self._sessions[session_id]
        session.release()

    def drop(self, session: Session, reason: str) -> None:
        """End a session that its client did not end; whoever asks for it is told the reason."""
        self.end(session.session_id)
        self.remember(session.session_id, reason)
        log.warning("session %s ended at step %d: it %s", session.session_id, session.next_step, reason)
        self._on_ended(session.session_id)

    def remember(self, session_id: str, reason: str) -> None:
        """Keep what became of a session ("was ..."), for whoever asks for it."""
        self._gone[session_id] = reason
        while len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)

    def reason(self, session_id: str) -> str | None:
        """Return what became of a session that its client did not end, None where nothing is known."""
        return self._gone.get(session_id)

    def evict_idle(self) -> None:
        """End the sessions that were idle too long; those with a step on its way stay."""
        now_s = time.monotonic()
        for session in list(self._sessions.values()):
            busy = session.ticket is not None and not session.ticket.settled
            if now_s - session.used_s > self.idle_s and not busy:
                self.evicted += 1
                self.drop(
                    session,
                    f"was evicted after more than {self.idle_s:g} s without a step "
                    "(inference.session_idle_s sets the time)",
                )

    def all(self) -> list[Session]:
        """Return the live sessions, oldest first."""
        return list(self._sessions.values())

    def _absence(self, session_id: str) -> str:
        if (reason := self.reason(session_id)) is not None:
            return f"session {session_id} {reason} and its state is gone; start one with POST /sessions"
        if self.restoring is not None:
            raise UnavailableError(f"{self.restoring}; retry in a few seconds")
        lost = f" ({self.lost})" if self.lost else ""
        return f"no session {session_id!r}{lost}; start one with POST /sessions"
