"""What the calls of an episode answer; structs where one is made for each step, since those are made faster."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from brain_service.errors import BrainError

__all__ = ["Appended", "EndReason", "Ended", "Ingested", "Taken"]

EndReason = Literal["terminated", "truncated", "recovered"]


class Appended(msgspec.Struct, frozen=True):
    """Answer to an append: index of its last step, highest index on the medium (-1: none), steps it held."""

    step_index: int
    durable_through: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Answer to an end: how many steps the episode has, the highest index on the medium, and how it ended."""

    steps: int
    durable_through: int
    reason: str


class Taken(msgspec.Struct, frozen=True):
    """An answer for each body that was accepted, in order; `error` is what the body behind them met."""

    appended: Sequence[Appended]
    error: BrainError | None = None


class Ingested(msgspec.Struct, frozen=True):
    """What became of the bodies of one call: the first `consumed` are in the log, `appended` answers the last.

    `error` is what body number `consumed` met; the bodies behind it were not looked at.
    """

    appended: Appended | None
    consumed: int
    error: BrainError | None = None
