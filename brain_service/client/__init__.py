"""What a robot controller imports: recording that never waits for the network, and driving.

Imports NumPy, httpx, msgspec and websockets, and neither the daemon nor a model framework.
"""

from brain_service.client.async_client import AsyncBrainClient
from brain_service.client.client import BrainClient
from brain_service.client.errors import (
    AuthError,
    BufferFullError,
    BusyError,
    ClientError,
    ConflictError,
    EncodeError,
    EndedError,
    LostStepsError,
    NotFoundError,
    ProblemError,
    RejectedError,
    SpoolError,
    StaleError,
    TimedOutError,
    UnreachableError,
)
from brain_service.client.fleet import Resent
from brain_service.client.parts import Ended
from brain_service.client.recorder import AsyncEpisodeRecorder, EpisodeRecorder
from brain_service.client.sessions import Action, AsyncSession, Session

__all__ = [
    "Action",
    "AsyncBrainClient",
    "AsyncEpisodeRecorder",
    "AsyncSession",
    "AuthError",
    "BrainClient",
    "BufferFullError",
    "BusyError",
    "ClientError",
    "ConflictError",
    "EncodeError",
    "Ended",
    "EndedError",
    "EpisodeRecorder",
    "LostStepsError",
    "NotFoundError",
    "ProblemError",
    "RejectedError",
    "Resent",
    "Session",
    "SpoolError",
    "StaleError",
    "TimedOutError",
    "UnreachableError",
]
