"""What the processes of one run must agree on. With one process everything here is free.

`meet` waits at a barrier of JAX's coordination service and runs nothing on the devices, so that it may be called
from any thread while they work. All processes make the same calls in the same order.
"""

import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from brain_service.errors import UnavailableError

__all__ = ["agree", "everyone", "is_first", "meet"]

WAIT_S = 1800
"""The slowest of a run's hosts may be so long behind the fastest, for a checkpoint to be written."""


def everyone() -> set[int]:
    """Return the indices of all processes."""
    return set(range(jax.process_count()))


def is_first() -> bool:
    """Whether this process does what only one may do."""
    return jax.process_index() == 0


def meet(name: str) -> None:
    """Wait until every process has come here; `name` stands for the place in errors."""
    # Named processes make it a barrier of the coordination service, not a collective on the devices.
    ocp.multihost.sync_global_processes(f"continuon-brain:{name}", processes=everyone(), timeout=WAIT_S)


def agree(decision: str) -> None:
    """Check that every process has come to the same decision. It uses the devices: not while they train.

    Raises:
        UnavailableError: another one has come to another.
    """
    if jax.process_count() == 1:
        return
    found = multihost_utils.process_allgather(np.uint32(zlib.crc32(decision.encode())))
    if len(set(found.tolist())) > 1:
        raise UnavailableError(
            f"host {jax.process_index()} is {decision}, another one is not: they see different files; start again"
        )
