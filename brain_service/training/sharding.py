"""Where arrays live: a mesh (data, fsdp), and the annotations that make one train step run on all of it.

    batch, carry        rows over data and fsdp
    parameters, moments the longest dimension that fsdp divides over fsdp; small ones everywhere
    step, metrics       everywhere

XLA puts the collectives in (GSPMD, arXiv 2105.04663); the step itself knows nothing of devices. With fsdp = 1 this
is data parallelism, with more it is ZeRO's third stage (arXiv 1910.02054).
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from brain_service.errors import InvalidError

__all__ = ["batch_sharding", "make_mesh", "parameter_sharding", "place", "replicated", "require_divisible"]

DATA, FSDP = "data", "fsdp"
MIN_SHARDED_SIZE = 1024  # numbers; to gather a smaller array costs more than to hold it on every device


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh of these devices (default: all), `fsdp` of them for each copy of the parameters.

    Its shape is `[devices / fsdp, fsdp]`, its axes are called `data` and `fsdp`.

    Raises:
        InvalidError: `fsdp` does not divide the number of devices.
    """
    # A host's devices side by side: the rows of a batch that it makes are then those that its devices take, and
    # parameters are gathered within a host where that is possible. A slice numbers its chips across hosts.
    found = sorted(jax.devices() if devices is None else devices, key=lambda device: device.process_index)
    if fsdp < 1 or len(found) % fsdp:
        raise InvalidError(f"fsdp {fsdp} does not divide {len(found)} devices; use a divisor", field="fsdp")
    grid = np.asarray(found, dtype=object).reshape(-1, fsdp)
    return Mesh(grid, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the annotation of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the annotation of an array `[B, ...]`: as many rows on every device."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def place(tree: Any, where: NamedSharding) -> Any:
    """Put arrays of this host on the devices.

    On several hosts each gives its own rows of what is spread by rows, and the whole of what is replicated.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, where)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(where, np.asarray(leaf)), tree)


def parameter_sharding(mesh: Mesh, tree: Any) -> Any:
    """Return the annotation of each leaf of parameters or of optimiser moments, in the tree's structure.

    The rule looks at a leaf's shape alone, so that a parameter and its moments lie alike.
    """
    return jax.tree.map(lambda leaf: _of_shape(mesh, tuple(leaf.shape)), tree)


def _of_shape(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    ways = mesh.shape[FSDP]
    fitting = [axis for axis, size in enumerate(shape) if size % ways == 0]
    if ways == 1 or not fitting or int(np.prod(shape)) < MIN_SHARDED_SIZE:
        return replicated(mesh)
    longest = max(fitting, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*(FSDP if axis == longest else None for axis in range(len(shape)))))


def require_divisible(batch_size: int, mesh: Mesh) -> None:
    """Check that every device gets as many rows.

    Raises:
        InvalidError: it does not; names sizes that would do.
    """
    devices = mesh.size
    if batch_size % devices:
        lower = batch_size // devices * devices
        nearest = f"{lower} or {lower + devices}" if lower else str(devices)
        raise InvalidError(
            f"batch_size {batch_size} is not divisible by {devices} devices; use {nearest}", field="batch_size"
        )
