"""What the processes of one run must agree on. With one process everything here is free.

The functions wait at barriers of JAX's coordination service and run nothing on the devices, so that they may be
called from any thread while the devices work; all processes call them in the same order.
"""

import jax
import orbax.checkpoint as ocp

__all__ = ["everyone", "is_first", "meet"]

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
