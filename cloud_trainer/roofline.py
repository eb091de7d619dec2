"""The shortest time that a step can take on a chip: the slowest of its products, its memory and its links.

Source: Williams, Waterman and Patterson, "Roofline" (CACM 2009); with links: Austin et al., "How to scale your
model" (2025). Each time is a lower bound: peak rates, and everything overlapped.
"""

from dataclasses import dataclass

from brain_service.cloud.chips import Slice
from cloud_trainer.accounting import Account

__all__ = ["Bound", "bound"]


@dataclass(frozen=True)
class Bound:
    """Seconds that a step takes at least for each of three reasons."""

    compute_s: float
    memory_s: float
    links_s: float

    @property
    def step_s(self) -> float:
        """Seconds that a step takes at least."""
        return max(self.compute_s, self.memory_s, self.links_s)


def bound(account: Account, slice_: Slice) -> Bound:
    """Return the bound of a step that does this on each chip of a slice.

    A collective runs as fast as the chip with the fewest links can receive.
    """
    chip = slice_.chip
    links_s = account.link_bytes / slice_.ici_bytes_per_s if slice_.ici_bytes_per_s else 0.0
    return Bound(account.matmul_flops / chip.bf16_flops_per_s, account.hbm_bytes / chip.hbm_bytes_per_s, links_s)
