"""Which exit code tells the launcher what about an error: 78 do not start it again, 75 do so now, 2 try again."""

from brain_service.cloud.run_status import EXIT_PREEMPTED, EXIT_REFUSED
from brain_service.errors import (
    BrainError,
    CancelledJobError,
    ConfigError,
    CorruptDataError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
)

__all__ = ["EXIT_FAILED", "exit_code"]

EXIT_FAILED = 2

REFUSED = (InvalidError, NotFoundError, ConfigError, CorruptDataError, ForbiddenError)
"""What is wrong now will be wrong again."""


def exit_code(error: BrainError) -> int:
    """Return the exit code that an error ends the process with."""
    if isinstance(error, CancelledJobError):
        return EXIT_PREEMPTED
    return EXIT_REFUSED if isinstance(error, REFUSED) else EXIT_FAILED
