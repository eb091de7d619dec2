"""A backend for real workers: it computes the toy in NumPy, and fails as the observation's `load` asks."""

import fcntl
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from brain_service.errors import UnavailableError
from brain_service.export.bundle import JAX_STEP, Bundle
from brain_service.inference.arena import Layout
from brain_service.inference.backends import BackendEntry

# Not the toy's module, which imports JAX: these workers are to start in a moment.
Floats = np.ndarray[Any, np.dtype[np.float32]]
LIMIT = 5.0

DIE, HANG, LEAK, DAWDLE = 100.0, 200.0, 300.0, 400.0
LEAK_BYTES = 96 * 1024**2
DAWDLE_S = 0.06
BROKEN = "broken"
"""While a file of this name lies in the cache folder, the backend does not load."""

DRIFT = "drift"
"""While this one does, each step adds to the state what only shows when another backend takes it up."""


def entry(name: str, device: str, *, steady: bool = False, exclusive: bool = False) -> BackendEntry:
    """One more backend of this kind for the table; a `steady` one minds no `load`, an `exclusive` one is busy to a
    second process."""
    environment = {"TOY_STEADY": "1" if steady else "", "TOY_EXCLUSIVE": "1" if exclusive else ""}
    return BackendEntry(name, device, JAX_STEP, "jax", __name__, environment, exclusive=exclusive)


class _Policy:
    buckets = (1,)

    def __init__(self, scale: float, drift: bool) -> None:
        self._scale = scale
        self._drift = np.float32(0.01 if drift else 0.0)
        self._steady = bool(os.environ["TOY_STEADY"])
        self._leaked: list[Floats] = []

    def run(self, carry: Floats, request: Floats, next_carry: Floats, response: Floats) -> None:
        joints, load = request[0, :2], 0.0 if self._steady else float(request[0, 2])
        previous, reward, is_first = request[0, 3:5], request[0, 5], request[0, 6]
        keep = np.float32(1.0) - is_first
        if load == DIE:
            os._exit(3)
        if load == HANG:
            time.sleep(600)
        if load == LEAK:
            self._leaked.append(np.ones(LEAK_BYTES // 4, np.float32))
        if load == DAWDLE:
            time.sleep(DAWDLE_S)
        hidden = keep * (carry[0, :2] - self._drift)
        next_carry[0, :2] = 0.5 * hidden + joints + self._drift
        next_carry[0, 2] = keep * carry[0, 2] + 1.0
        total = next_carry[0, :2] - self._drift
        raw = self._scale * (total + 0.1 * keep * previous + 0.01 * keep * reward + 0.001 * next_carry[0, 2])
        first = np.clip(raw, -LIMIT, LIMIT)
        response[0] = np.concatenate([first, -first])


def load(bundle: Bundle, layout: Layout, cache_dir: Path) -> _Policy:
    assert (layout.carry_size, layout.request_size, layout.response_size) == (3, 7, 4)
    if (cache_dir / BROKEN).exists():
        raise UnavailableError("the device is broken")
    if os.environ["TOY_EXCLUSIVE"]:
        # Held by the open file, so for as long as this process lives.
        lock = os.open(cache_dir / "device.lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UnavailableError("the device is busy") from error
    return _Policy((bundle.manifest.evaluation or {})["scale"], (cache_dir / DRIFT).exists())
