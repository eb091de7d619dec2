"""How far actions move when a session's hidden state goes from one backend to another, measured on this machine.

The golden sequence is run with the backends in turns, on a row of its own, through the very workers and the very
memory that sessions use. Each backend alone is within its own bound of the reference; a state that was computed by
one and continued by the other carries the errors of both, so what is allowed is at most the sum of the two bounds.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brain_service.errors import UnavailableError
from brain_service.export.bundle import Golden, Manifest
from brain_service.inference.arena import Layout, Row
from brain_service.inference.client import WorkerClient
from brain_service.inference.protocol import Status

__all__ = ["Divergence", "measure_divergence", "switch_bound"]

_TURN = 8
"""Steps between two moves: long enough for the state to become the other backend's own."""

_STEP_NS = 10_000_000_000


@dataclass(frozen=True)
class Divergence:
    """Largest difference to the reference with moves on the way, as a share of the action range, and its bound."""

    backends: tuple[str, str]
    measured: float
    bound: float

    @property
    def within(self) -> bool:
        """Whether a live session may move between the two; NaN may not."""
        return self.measured <= self.bound

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form shown in `/models`."""
        return {"backends": list(self.backends), "measured": self.measured, "bound": self.bound}


def switch_bound(manifest: Manifest, forms: tuple[str, str]) -> float:
    """Return what a move between two forms (parity keys) may change, as a share of the action range.

    That is the bundle's own bound where its forms were held against each other at export.
    """
    exported = manifest.parity.get("switch")
    if exported is not None and "hailo" not in forms:
        return exported.bound
    return manifest.parity[forms[0]].bound + manifest.parity[forms[1]].bound


async def measure_divergence(
    workers: Sequence[WorkerClient], row: Row, golden: Golden, manifest: Manifest
) -> float:
    """Run the golden sequence on `row`, which nobody else uses, moving between two workers every `_TURN` steps.

    Raises:
        WorkerLostError: one of them died.
        UnavailableError: one gave no finite action.
    """
    span = np.asarray(manifest.action_high, np.float32) - np.asarray(manifest.action_low, np.float32)
    span[span == 0.0] = 1.0
    layout = Layout.of(manifest)
    row.clear()
    worst = 0.0
    for t, expected in enumerate(golden.action):
        layout.put(row.request[0], golden.at(t))
        worker = workers[t // _TURN % 2]
        ticket = worker.submit(row.index, t % 2, time.monotonic_ns() + _STEP_NS)
        done = await ticket.waiter
        if done.status is not Status.OK:
            raise UnavailableError(f"{worker.backend}: {done.status.name} at step {t} of the golden sequence")
        difference = np.abs(row.response.reshape(expected.shape) - expected) / span
        worst = max(worst, float(difference.max()))
    return worst
