"""What a slice costs by the list: enough to stop a run in time, not a bill.

Google's on-demand list prices of US regions, US dollars a chip and hour, as they stood at `PRICES_AS_OF`. Spot
prices float; Google names discounts from 60 % on for most machines, so half the list price errs towards stopping
early. Disks, storage and traffic are not counted. Source: https://cloud.google.com/tpu/pricing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from brain_service.cloud.machines import TpuSlice
from brain_service.errors import InvalidError

__all__ = ["LIST_PRICES_USD", "PRICES_AS_OF", "PriceList"]

PRICES_AS_OF = "2025-11"
LIST_PRICES_USD: Mapping[str, float] = {"v5e": 1.20, "v6e": 2.70, "v5p": 4.20}


@dataclass(frozen=True, kw_only=True)
class PriceList:
    """US dollars a chip and hour by TPU generation, and the share of that which Spot costs (0 to 1)."""

    usd_per_chip_hour: Mapping[str, float] = field(default_factory=lambda: dict(LIST_PRICES_USD))
    spot_share: float = 0.5
    as_of: str = PRICES_AS_OF

    def cost_usd(self, topology: TpuSlice, running_s: float, *, spot: bool) -> float:
        """Return what `running_s` seconds of a slice cost.

        Raises:
            InvalidError: the list has no price for the generation.
        """
        price = self.usd_per_chip_hour.get(topology.generation)
        if price is None:
            raise InvalidError(
                f"no list price for {topology.generation}; known are {', '.join(self.usd_per_chip_hour)}",
                field="topology",
            )
        return running_s / 3600 * topology.chips * price * (self.spot_share if spot else 1.0)
