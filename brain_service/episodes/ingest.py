"""Bodies on their way into the log: taken in order, answered without a thread waiting for the medium."""

from dataclasses import dataclass

from brain_service.episodes.writer import Appended
from brain_service.errors import BrainError

__all__ = ["Ingested"]


@dataclass(frozen=True, slots=True)
class Ingested:
    """What became of the bodies of one call: the first `consumed` are in the log, `appended` answers the last.

    `error` is what body number `consumed` met; the bodies behind it were not looked at.
    """

    appended: Appended | None
    consumed: int
    error: BrainError | None = None
