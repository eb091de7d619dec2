"""Plan a step for the TPUs of this machine."""

import jax

from brain_service.cloud.chips import CHIPS, Slice
from brain_service.cloud.plans import Plan
from brain_service.errors import UnavailableError
from brain_service.training.config import TrainConfig
from brain_service.training.sharding import make_mesh
from cloud_trainer.topology import plan_step

__all__ = ["plan_here", "slice_of"]

KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
}
"""What JAX calls a chip."""


def plan_here(config: TrainConfig, obs_dim: int, action_dim: int, fsdp: int) -> Plan | None:
    """Return the plan of a run on all devices of the job, None where they are no TPUs.

    Raises:
        InvalidError: the devices do not divide the batch or by `fsdp`.
        UnavailableError: the chips are of a kind that has no data sheet here, or the compiler failed.
    """
    devices = jax.devices()
    if devices[0].platform != "tpu":
        return None
    slice_ = slice_of(devices[0].device_kind, len(devices))
    return plan_step(config, make_mesh(fsdp, devices), slice_, obs_dim, action_dim)


def slice_of(kind: str, chips: int) -> Slice:
    """Return the slice of so many chips of the kind that JAX reports.

    Raises:
        UnavailableError: there is no such slice in the table.
    """
    chip = CHIPS.get(KINDS.get(kind, ""))
    if chip is None:
        raise UnavailableError(f"no data sheet for a chip of kind {kind!r}; known are {', '.join(KINDS)}")
    for shape in chip.shapes:
        if Slice(chip, shape).chips == chips:
            return Slice(chip, shape)
    raise UnavailableError(f"{chips} chips of {chip.generation} are no slice that can be had")
