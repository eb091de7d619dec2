"""The canary: a model that is about to serve answers the live sessions' inputs in shadow, and nobody hears it.

Each input is offered after its live answer has gone out; one that finds the shadow still busy is dropped, so the
live answers never wait. The shadow has rows and a state of its own, and begins in the middle of an episode: its
first step of a session counts as an episode's first.
"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from brain_service.errors import BrainError, ConflictError
from brain_service.inference.arena import Row
from brain_service.inference.client import Ticket
from brain_service.inference.conduct import Conduct, Usual, fault
from brain_service.inference.protocol import Done, Status
from brain_service.inference.rebuild import put_request
from brain_service.inference.served_model import ServedModel
from brain_service.settings import InferenceSettings

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float32

__all__ = ["Canary"]

_MAX_SHADOWS = 4
"""Sessions shadowed at once: enough to see the model act, few enough to leave the processor to the live one."""

_MIN_STEPS = 10
"""A share of fewer steps than this tells nothing."""


@dataclass(eq=False)
class _Shadow:
    row: Row
    slot: int = 0
    fresh: bool = True
    busy: bool = False
    ticket: Ticket | None = None
    previous: "Float32[np.ndarray, 'A'] | None" = field(default=None, repr=False)


class Canary:
    """One trial of `candidate` beside the `active` model, over inputs of the same layout."""

    def __init__(self, candidate: ServedModel, active: ServedModel, settings: InferenceSettings) -> None:
        self._candidate = candidate
        self._active = active
        self._settings = settings
        self._conduct = Conduct(candidate.manifest, settings.canary_steps)
        self._live = Conduct(active.manifest, settings.canary_steps)
        self._shadows: dict[tuple[str, int], _Shadow] = {}
        self._dropped = 0
        self._worst_us = 0.0
        self._failure: str | None = None
        self._enough = asyncio.Event()

    def offer(
        self,
        session: tuple[str, int],
        model: ServedModel,
        request: "Float32[np.ndarray, 'R']",
        action: "Float32[np.ndarray, 'A']",
        previous: "Float32[np.ndarray, 'A'] | None",
    ) -> None:
        """Give the candidate an answered step: the session (id and life) and its model, its request and action.

        The request has shape `[R]`, the action and the one before it (None at the first step) `[A]`, in raw units.
        """
        if model is not self._active or self._enough.is_set():
            return
        shadow = self._shadows.get(session)
        if shadow is None:
            if len(self._shadows) >= _MAX_SHADOWS:
                return
            shadow = self._shadows[session] = _Shadow(self._candidate.take_row())
        if shadow.busy:
            # What comes next does not follow on what the shadow saw last.
            self._dropped, shadow.fresh = self._dropped + 1, True
            return
        self._live.answered(action, previous)
        if shadow.fresh:
            shadow.previous = None
        put_request(shadow.row, request, self._candidate.layout, first=shadow.fresh)
        deadline_ns = time.monotonic_ns() + int(self._settings.deadline_ms * 1e6)
        try:
            shadow.ticket = self._candidate.submit(shadow.row, shadow.slot, deadline_ns)
        except BrainError as error:
            self._fail(error.detail)
            return
        shadow.busy = True
        shadow.ticket.waiter.add_done_callback(lambda waiter: self._answered(shadow, waiter, deadline_ns))

    async def verdict(self) -> str:
        """Wait for `canary_steps` answers, at most `canary_timeout_s`; return what was seen if nothing is wrong.

        Raises:
            ConflictError: the candidate's actions are not finite, at or beyond their limits, jump or are late.
        """
        timeout_s = self._settings.canary_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._enough.wait()
        except TimeoutError:
            pass
        finally:
            self._enough.set()
            for shadow in self._shadows.values():
                self._candidate.give_back(shadow.row, shadow.ticket)
        steps = self._conduct.steps
        if self._failure is None and steps == 0:
            return f"skipped: no live step within {timeout_s:g} s"
        reason = self._failure or self._fault()
        if reason is not None:
            raise ConflictError(
                f"model {self._candidate.model_id} was refused by its canary: {reason}; what served before goes on"
            )
        return (
            f"{steps} live steps of {len(self._shadows)} sessions in shadow, {self._dropped} dropped, the slowest "
            f"{self._worst_us / 1e3:.1f} ms"
        )

    def _fault(self) -> str | None:
        live = self._live.usual()
        usual = Usual(live.limit_share, live.jump)
        # The live model answered these very inputs: none of them is an excuse for an action beyond its limits.
        bounds = self._settings.rollback.model_copy(update={"max_nonfinite": 1, "min_steps": _MIN_STEPS})
        return fault(self._conduct, usual, bounds)

    def _answered(self, shadow: _Shadow, waiter: "asyncio.Future[Done]", deadline_ns: int) -> None:
        shadow.busy = False
        if waiter.cancelled() or (error := waiter.exception()) is not None:
            self._fail("its worker was stopped" if waiter.cancelled() else str(error))
            return
        if self._enough.is_set():
            return
        done = waiter.result()
        if done.status is Status.NONFINITE:
            self._conduct.broken()
            self._fail("its action was NaN or infinite where the active model's was not")
        elif done.status is Status.EXPIRED or done.end_ns > deadline_ns:
            self._conduct.late()
            shadow.fresh = True
        else:
            action = shadow.row.response[0, : self._candidate.manifest.action_size].copy()
            self._conduct.answered(action, shadow.previous)
            shadow.slot, shadow.previous, shadow.fresh = 1 - shadow.slot, action, False
            self._worst_us = max(self._worst_us, (done.end_ns - done.start_ns) / 1e3)
        if self._conduct.steps >= self._settings.canary_steps:
            self._enough.set()

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason
        self._enough.set()
