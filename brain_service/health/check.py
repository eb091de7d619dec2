"""One observation of health, and the worst of many.

The shape follows the health+json draft (draft-inadarei-api-health-check): `pass`, `warn` or `fail`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Check", "Status", "overall", "worst"]

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One observation: its value with unit, the limit it is held against, the reason, and how to mend it.

    `fix` is the next step, as a command where there is one; both texts are empty where there is nothing to say.
    """

    status: Status
    observed_value: float | str | None
    observed_unit: str
    reason: str = ""
    limit: float | str | None = None
    fix: str = ""

    @property
    def output(self) -> str:
        """Reason and fix in one line."""
        return "; ".join(text for text in (self.reason, self.fix) if text)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form used in `/health`."""
        return {
            "status": self.status,
            "observed_value": self.observed_value,
            "observed_unit": self.observed_unit,
            "limit": self.limit,
            "reason": self.reason,
            "fix": self.fix,
            "output": self.output,
        }


def worst(statuses: Iterable[Status]) -> Status:
    """Return the worst of some states; `pass` of none."""
    found = set(statuses)
    return "fail" if "fail" in found else "warn" if "warn" in found else "pass"


def overall(checks: "dict[str, Check]") -> Status:
    """Return the worst status among the checks."""
    return worst(check.status for check in checks.values())
