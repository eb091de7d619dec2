"""What a slice of TPUs is called by Vertex AI and by the Cloud TPU API; what it is, says `chips`.

Sources: https://cloud.google.com/tpu/docs/v5e, /v6e and /v5p (accelerator types, hosts);
https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus (machine types, chips a host).
"""

from dataclasses import dataclass

from brain_service.cloud.chips import parse_topology
from brain_service.errors import InvalidError

__all__ = ["TpuSlice", "runtime_version", "tpu_slice"]


@dataclass(frozen=True, kw_only=True)
class _Names:
    accelerator: str
    """Prefix of the accelerator type."""
    units_per_chip: int
    """v5p is counted in TensorCores, of which a chip has two; v5e and v6e in chips."""
    machines: dict[int, str]
    """Machine types by chips a host."""
    runtime: str


# Of a slice of several hosts.
_CHIPS_PER_HOST = 4
_NAMES = {
    "v5e": _Names(
        accelerator="v5litepod",
        units_per_chip=1,
        machines={chips: f"ct5lp-hightpu-{chips}t" for chips in (1, 4, 8)},
        runtime="v2-alpha-tpuv5-lite",
    ),
    "v6e": _Names(
        accelerator="v6e",
        units_per_chip=1,
        machines={chips: f"ct6e-standard-{chips}t" for chips in (1, 4, 8)},
        runtime="v2-alpha-tpuv6e",
    ),
    "v5p": _Names(
        accelerator="v5p",
        units_per_chip=2,
        machines={4: "ct5p-hightpu-4t"},
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
    found = parse_topology(topology)
    generation, chips = found.chip.generation, found.chips
    names = _NAMES.get(generation)
    if names is None:
        raise InvalidError(
            f"topology {topology!r}: no machine is known for {generation}; take one of {', '.join(_NAMES)}",
            field="topology",
        )
    machine = names.machines.get(chips)
    return TpuSlice(
        generation=generation,
        shape=topology.partition(":")[2],
        chips=chips,
        hosts=1 if machine else chips // _CHIPS_PER_HOST,
        machine_type=machine or names.machines[_CHIPS_PER_HOST],
        accelerator_type=f"{names.accelerator}-{chips * names.units_per_chip}",
    )


def runtime_version(topology: TpuSlice, configured: str) -> str:
    """Return the TPU VM image for a slice: the configured one, unless that is another generation's own."""
    other = {found.runtime for name, found in _NAMES.items() if name != topology.generation}
    return _NAMES[topology.generation].runtime if configured in other else configured
