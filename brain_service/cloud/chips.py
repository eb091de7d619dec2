"""TPU chips and slices: how fast, how much memory, what list price. The launcher's and the planner's one table.

Speeds: Google's "TPU v5e", "TPU v5p" and "TPU v6e" pages; a link's speed one way as measured in "How to scale your
model" (Austin et al., 2025), which is a little below the data sheets. No framework is imported here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from brain_service.errors import InvalidError

__all__ = ["CHIPS", "PRICES_AS_OF", "Chip", "Slice", "parse_topology"]

PRICES_AS_OF = "2025-11"
"""When the list prices were copied from Google's price page (us-central1 and us-east; other regions cost more)."""

GIB = 1024**3
FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
CUBES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8))


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One TPU chip. Rates are peaks that the data sheet promises, so times made from them are lower bounds."""

    generation: str
    hbm_bytes: int
    """Memory that a program gets; the runtime keeps a little of the data sheet's for itself."""
    bf16_flops_per_s: float
    hbm_bytes_per_s: float
    link_bytes_per_s: float
    """One link to one neighbour, one way."""
    torus_from: int
    """A side of a slice that is at least so long closes to a ring; a shorter one is a line."""
    usd_per_hour: float
    """On demand, list."""
    spot_usd_per_hour: float
    """For planning: half of the list price. The real one moves daily and is hardly ever above it."""
    shapes: tuple[tuple[int, ...], ...]
    """Slices that can be had."""


CHIPS: Mapping[str, Chip] = {
    chip.generation: chip
    for chip in (
        Chip(
            generation="v5e",
            hbm_bytes=int(15.75 * GIB),
            bf16_flops_per_s=197e12,
            hbm_bytes_per_s=819e9,
            link_bytes_per_s=45e9,
            torus_from=16,
            usd_per_hour=1.20,
            spot_usd_per_hour=0.60,
            shapes=FLAT,
        ),
        Chip(
            generation="v6e",
            hbm_bytes=int(31.25 * GIB),
            bf16_flops_per_s=918e12,
            hbm_bytes_per_s=1640e9,
            link_bytes_per_s=90e9,
            torus_from=16,
            usd_per_hour=2.70,
            spot_usd_per_hour=1.35,
            shapes=FLAT,
        ),
        Chip(
            generation="v5p",
            hbm_bytes=int(95.74 * GIB),
            bf16_flops_per_s=459e12,
            hbm_bytes_per_s=2765e9,
            link_bytes_per_s=90e9,
            torus_from=4,
            usd_per_hour=4.20,
            spot_usd_per_hour=2.10,
            shapes=CUBES,
        ),
    )
}
"""Generation -> chip."""


@dataclass(frozen=True)
class Slice:
    """Chips that are wired to each other: what one run gets."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def topology(self) -> str:
        """The name that settings and `jax.experimental.topologies` use, such as `v5e:4x4`."""
        return f"{self.chip.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """How many chips; a chip is one device of a mesh (the two cores of a v5p act as one)."""
        return prod(self.shape)

    @property
    def links(self) -> int:
        """Links of the chip with the fewest: one a line it is the end of, two a ring."""
        return sum(2 if side >= self.chip.torus_from else 1 for side in self.shape if side > 1)

    @property
    def ici_bytes_per_s(self) -> float:
        """Bytes a second that the chip with the fewest links can get from its neighbours; 0 for a single chip."""
        return self.links * self.chip.link_bytes_per_s

    def usd_per_hour(self, *, spot: bool) -> float:
        """Return the price of the whole slice in US dollars an hour."""
        return self.chips * (self.chip.spot_usd_per_hour if spot else self.chip.usd_per_hour)


def parse_topology(text: str) -> Slice:
    """Return the slice that a name such as `v5e:4x4` stands for.

    Raises:
        InvalidError: it names no chip of the table, or a shape that cannot be had; lists those that can.
    """
    generation, _, sides = text.partition(":")
    chip = CHIPS.get(generation)
    if chip is None:
        raise InvalidError(
            f"topology {text!r}: the generation is none of {', '.join(CHIPS)}; write it as v5e:4x4",
            field="topology",
        )
    for shape in chip.shapes:
        if sides == "x".join(map(str, shape)):
            return Slice(chip, shape)
    offered = ", ".join("x".join(map(str, shape)) for shape in chip.shapes)
    raise InvalidError(f"topology {text!r}: slices of {generation} are {offered}", field="topology")
