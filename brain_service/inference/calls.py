"""What a caller of the router gives and gets: one inference request, its reply, and a session's description."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_service.errors import InvalidError

if TYPE_CHECKING:
    from jaxtyping import Float32

__all__ = ["InferReply", "InferRequest", "SessionInfo"]

_MAX_DEADLINE_MS = 60_000.0
_MAX_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One observation for which an action is wanted.

    `step` counts from 0 after the start or reset of the session; left out, it is the next one. `reward` and
    `executed_action` describe step t-1; step 0 ignores them. A reward that is left out reads as the mean of those
    that the model was trained on. The model's previous action is the one that the
    session was answered (as in training), so `executed_action` is checked for the record but not fed back.
    `deadline_ms` counts from `received_ns` (`time.monotonic_ns()` at receipt; 0 means now); left out, it is
    the setting's. With `why` the answer explains itself.
    """

    session_id: str
    observation: Mapping[str, Any]
    step: int | None = None
    reward: float | None = None
    executed_action: Mapping[str, Any] | None = None
    deadline_ms: float | None = None
    received_ns: int = 0
    why: bool = False

    def check(self) -> None:
        """Hold the numbers beside the observation against their bounds.

        Raises:
            InvalidError: step, deadline or reward is out of its range; the error names it.
        """
        step, deadline_ms = self.step, self.deadline_ms
        if step is not None and (type(step) is not int or step < 0):
            raise InvalidError(f"step: {step!r} is not a whole number from 0 on", field="step")
        if deadline_ms is not None and not 0 < deadline_ms <= _MAX_DEADLINE_MS:
            raise InvalidError(
                f"deadline_ms: {deadline_ms!r} is not above 0 and at most {_MAX_DEADLINE_MS:g}",
                field="deadline_ms",
            )
        if self.reward is not None and not abs(self.reward) <= _MAX_FLOAT32:
            raise InvalidError(f"reward: {self.reward!r} is not finite in float32", field="reward")


@dataclass(frozen=True, slots=True, eq=False)
class InferReply:
    """An action in time, and where it came from.

    `action` has the names, shapes and dtypes that training saw; `chunk` is the model's whole plan as flat
    vectors, shape [H, A] in raw units, of which `action` is row 0. `state_step` is the number of steps that
    the hidden state had seen when it produced the action. `timings_us` holds `queue` (receipt to the start
    of the computation), `compute` and `total`. `model_since_step` is the session's first step on this model. It
    was computed in place `row` of a batch of `bucket` rows (0 of 1: alone), which decides its last bits. A repeat
    of an answered step gets this very object again, or a copy with `why` where that is asked for.
    """

    action: dict[str, Any]
    step: int
    model_id: str
    backend: str
    state_step: int
    timings_us: dict[str, float]
    chunk: "Float32[np.ndarray, 'H A']" = field(repr=False)
    warnings: tuple[str, ...] = ()
    bucket: int = 1
    row: int = 0
    why: dict[str, Any] | None = None
    model_since_step: int = 0


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as `/sessions` shows it: its model and since which step, its next step, age and idle time [s].

    `state_steps` is how many steps the hidden state has seen: fewer than `next_step` where it was rebuilt.
    """

    session_id: str
    model_id: str
    backend: str
    next_step: int
    age_s: float
    idle_s: float
    control_period_s: float | None
    action_horizon: int
    model_since_step: int = 0
    state_steps: int = 0
