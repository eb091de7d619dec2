"""What a slice costs by the list: enough to stop a run in time, not a bill.

The list is the one of `chips`: Google's list prices of US regions, US dollars a chip and hour, on demand and the
half of that for Spot, whose real price moves daily and is hardly ever above it. Disks, storage and traffic are not
counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from brain_service.cloud.chips import CHIPS, PRICES_AS_OF
from brain_service.cloud.machines import TpuSlice
from brain_service.errors import InvalidError

__all__ = ["PriceList"]


@dataclass(frozen=True, kw_only=True)
class PriceList:
    """US dollars a chip and hour by TPU generation, on demand and for Spot; another one for another contract."""

    usd_per_chip_hour: Mapping[str, float] = field(
        default_factory=lambda: {name: chip.usd_per_hour for name, chip in CHIPS.items()}
    )
    spot_usd_per_chip_hour: Mapping[str, float] = field(
        default_factory=lambda: {name: chip.spot_usd_per_hour for name, chip in CHIPS.items()}
    )
    as_of: str = PRICES_AS_OF

    def cost_usd(self, topology: TpuSlice, running_s: float, *, spot: bool) -> float:
        """Return what `running_s` seconds of a slice cost.

        Raises:
            InvalidError: the list has no price for the generation.
        """
        prices = self.spot_usd_per_chip_hour if spot else self.usd_per_chip_hour
        if topology.generation not in prices:
            raise InvalidError(
                f"no list price for {topology.generation}; known are {', '.join(prices)}", field="topology"
            )
        return running_s / 3600 * topology.chips * prices[topology.generation]
