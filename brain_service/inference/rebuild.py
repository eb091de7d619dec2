"""A live session's state, rebuilt on another model by replaying its last inputs; it moves between two requests.

Hidden state never crosses to other weights: the new state comes from zero and the session's own requests. The
session goes on answering on its old model meanwhile, and what it answers is replayed too.
"""

import logging
import time
from typing import TYPE_CHECKING

from brain_service.errors import UnavailableError
from brain_service.inference.arena import Layout, Row
from brain_service.inference.client import Ticket
from brain_service.inference.protocol import Status
from brain_service.inference.served_model import ServedModel
from brain_service.inference.sessions import Session, SessionTable

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float32

__all__ = ["put_request", "rebuild"]

log = logging.getLogger(__name__)

_STEP_NS = 5_000_000_000
_GIVE_UP_S = 60.0


async def rebuild(
    session: Session, model: ServedModel, table: SessionTable, steps: int, held_steps: int = 1
) -> bool:
    """Move `session` to `model` and tell whether it did; it does not when it ends or is reset meanwhile.

    Its last `steps` inputs are replayed; for the last `held_steps` of them it is held between two requests.

    Raises:
        UnavailableError: the state cannot be rebuilt, or not within `_GIVE_UP_S`; the session is where it was.
    """
    life, give_up_s = session.life, time.monotonic() + _GIVE_UP_S

    def gone() -> bool:
        return session.life != life or not table.holds(session)

    if gone() or session.model is model:
        return False
    replay = _Replay(model, session, steps)
    try:
        while session.next_step - replay.next_step > held_steps:
            await replay.step(session)
            if gone():
                return False
            if time.monotonic() > give_up_s:
                raise UnavailableError(f"it asks as fast as its inputs can be replayed for {_GIVE_UP_S:g} s")
        async with session.turn:
            if gone():
                return False
            while replay.next_step < session.next_step:
                await replay.step(session)
                # A reset or an end waits for no turn.
                if gone():
                    return False
            old_model, old_row, old_ticket = session.model, session.row, session.ticket
            session.move(
                model, replay.row, slot=replay.slot, next_step=session.next_step, state_steps=replay.steps
            )
            replay.moved = True
            old_model.give_back(old_row, old_ticket)
            return True
    finally:
        if not replay.moved:
            model.give_back(replay.row, replay.ticket)


class _Replay:
    """A state in the making: a row of the new model, and the next step of the session that it has to see."""

    def __init__(self, model: ServedModel, session: Session, steps: int) -> None:
        """Take a row.

        Raises:
            UnavailableError: there is none free, or the model asks for other inputs.
        """
        ours, theirs = session.model.manifest, model.manifest
        if ours.spec != theirs.spec or theirs.image not in (None, ours.image):
            raise UnavailableError(f"model {model.model_id} asks for other inputs")
        self.row: Row = model.take_row()
        self.slot = 0
        self.steps = 0
        self.ticket: Ticket | None = None
        self.moved = False
        self.next_step = session.next_step - min(steps, len(session.history))
        self._model = model

    async def step(self, session: Session) -> None:
        """Replay the next step.

        Raises:
            UnavailableError: the worker is gone or too slow, the step gives no finite action, or its input has
                left the session's history.
        """
        behind = session.next_step - self.next_step
        if behind > len(session.history):
            raise UnavailableError("its inputs left the history faster than they could be replayed")
        put_request(self.row, session.history[-behind], self._model.layout, first=self.steps == 0)
        self.ticket = self._model.submit(self.row, self.slot, time.monotonic_ns() + _STEP_NS)
        done = await self.ticket.waiter
        if done.status is not Status.OK:
            raise UnavailableError(f"step {self.next_step} could not be replayed: {done.status.name.lower()}")
        self.slot = 1 - self.slot
        self.steps += 1
        self.next_step += 1


def put_request(row: Row, request: "Float32[np.ndarray, 'R']", layout: Layout, *, first: bool) -> None:
    """Write a request (shape `[R]`) to a row; with `first` as an episode's first, which knows no step before it.

    It may be one of a model that sees an image where this one's `layout` has none: the image stands last.
    """
    row.request[0] = request[: layout.request_size]
    if first:
        D, A = layout.observation, layout.action
        row.request[0, D : D + A + 1] = 0.0
        row.request[0, D + A + 1] = 1.0
