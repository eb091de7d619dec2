"""Backends: what a worker runs a bundle's step with. A table picks one by device; nothing heavy is imported.

A backend is a module with a function `load(bundle, layout, cache_dir) -> Policy`. The worker imports it; the
daemon reads only this table, for the form that the backend needs in the bundle and the environment of its
process.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from brain_service.export.bundle import HEF, JAX_STEP, Bundle
from brain_service.inference.arena import Layout

if TYPE_CHECKING:
    from jaxtyping import Float32

__all__ = ["BACKENDS", "BackendEntry", "Policy", "PolicyLoader"]


class Policy(Protocol):
    """A loaded, compiled step. `buckets` are the row counts B that it takes, ascending, the first of them 1."""

    buckets: tuple[int, ...]

    def run(
        self,
        carry: "Float32[np.ndarray, 'B C']",
        request: "Float32[np.ndarray, 'B R']",
        next_carry: "Float32[np.ndarray, 'B C']",
        response: "Float32[np.ndarray, 'B HA']",
    ) -> None:
        """Fill `next_carry` (shape `[B, C]`) and `response` (`[B, H * A]`) from `carry` and `request`.

        All are in the layout of the arena's rows: the request (`[B, D + A + 2]`) and the response in raw units.
        """


class PolicyLoader(Protocol):
    """The `load` of a backend's module."""

    def __call__(self, bundle: Bundle, layout: Layout, cache_dir: Path) -> Policy:
        """Load and compile the bundle's step; compiled programs may be kept in `cache_dir`.

        Raises:
            UnavailableError: the runtime cannot load the step; the message says why.
            CorruptDataError: the bundle's form or parameters do not fit its manifest.
        """


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """One backend: its name in answers, the file and the parity bound it needs, its module and environment.

    `python` is the interpreter of its worker where that is not the daemon's own.
    """

    name: str
    form: str
    parity: str
    module: str
    environment: Mapping[str, str] = field(default_factory=dict)
    python: str | None = None


BACKENDS: Mapping[str, BackendEntry] = {
    "hailo": BackendEntry(
        name="hailo",
        form=HEF,
        parity="hailo",
        module="brain_service.inference.backends.hailo",
        # Where the distribution's HailoRT lives; the setting `inference.hailo_python` takes its place.
        python="/usr/bin/python3",
    ),
    "cpu": BackendEntry(
        name="jax-cpu",
        form=JAX_STEP,
        parity="jax",
        module="brain_service.inference.backends.jax_cpu",
        # One robot's step is a chain of small matrix-vector products: handing them to a thread pool costs
        # more than it saves, and the other cores belong to capture and training.
        environment={
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
            "OMP_NUM_THREADS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        },
    ),
}
"""Backends by the device name that `inference.backends` orders."""
