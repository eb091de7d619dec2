"""What a slice of TPUs is called: by JAX's topologies, by Vertex AI and by the Cloud TPU API.

Sources: https://cloud.google.com/tpu/docs/v5e, /v6e and /v5p (accelerator types, hosts);
https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus (machine types, chips a host).
"""

import math
from dataclasses import dataclass

from brain_service.errors import InvalidError

__all__ = ["TpuSlice", "runtime_version", "tpu_slice"]


@dataclass(frozen=True, kw_only=True)
class _Generation:
    accelerator: str
    """Prefix of the accelerator type."""
    units_per_chip: int
    """v5p is counted in TensorCores, of which a chip has two; v5e and v6e in chips."""
    machines: dict[int, str]
    """Machine types by chips a host."""
    chips_per_host: int
    """Of a slice of several hosts."""
    shapes: tuple[str, ...]
    runtime: str


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
_GENERATIONS = {
    "v5e": _Generation(
        accelerator="v5litepod",
        units_per_chip=1,
        machines={chips: f"ct5lp-hightpu-{chips}t" for chips in (1, 4, 8)},
        chips_per_host=4,
        shapes=_FLAT,
        runtime="v2-alpha-tpuv5-lite",
    ),
    "v6e": _Generation(
        accelerator="v6e",
        units_per_chip=1,
        machines={chips: f"ct6e-standard-{chips}t" for chips in (1, 4, 8)},
        chips_per_host=4,
        shapes=_FLAT,
        runtime="v2-alpha-tpuv6e",
    ),
    "v5p": _Generation(
        accelerator="v5p",
        units_per_chip=2,
        machines={4: "ct5p-hightpu-4t"},
        chips_per_host=4,
        shapes=_CUBES,
        runtime="v2-alpha-tpuv5",
    ),
}


@dataclass(frozen=True, kw_only=True)
class TpuSlice:
    """One slice. `hosts` is how many machines, each with `chips / hosts` chips, a process on each."""

    generation: str
    shape: str
    chips: int
    hosts: int
    machine_type: str
    accelerator_type: str


def tpu_slice(topology: str) -> TpuSlice:
    """Return what a topology such as `v5e:2x2` is made of.

    Raises:
        InvalidError: an unknown generation, or a shape that it is not sold in.
    """
    name, _, shape = topology.partition(":")
    generation = _GENERATIONS.get(name)
    if generation is None:
        raise InvalidError(
            f"topology {topology!r}: no such TPU generation; known are {', '.join(_GENERATIONS)}", field="topology"
        )
    if shape not in generation.shapes:
        raise InvalidError(
            f"topology {topology!r}: {name} comes as {', '.join(generation.shapes)}", field="topology"
        )
    chips = math.prod(int(edge) for edge in shape.split("x"))
    machine = generation.machines.get(chips)
    hosts = 1 if machine else chips // generation.chips_per_host
    return TpuSlice(
        generation=name,
        shape=shape,
        chips=chips,
        hosts=hosts,
        machine_type=machine or generation.machines[generation.chips_per_host],
        accelerator_type=f"{generation.accelerator}-{chips * generation.units_per_chip}",
    )


def runtime_version(topology: TpuSlice, configured: str) -> str:
    """Return the TPU VM image for a slice: the configured one, unless that is another generation's own."""
    other = {found.runtime for name, found in _GENERATIONS.items() if name != topology.generation}
    return _GENERATIONS[topology.generation].runtime if configured in other else configured
