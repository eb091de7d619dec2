"""Bodies on their way into the log: taken in order, answered without a thread waiting for the medium."""

from brain_service.episodes.answers import Ingested

__all__ = ["Ingested"]
