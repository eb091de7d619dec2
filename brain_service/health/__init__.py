"""Health: what an operator and `/health` look at."""

from brain_service.health.check import Check, overall

__all__ = ["Check", "overall"]
