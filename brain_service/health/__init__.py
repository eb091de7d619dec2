"""Health: what an operator and `/health` look at."""

from brain_service.health.checks import Check, gather_checks, overall

__all__ = ["Check", "gather_checks", "overall"]
