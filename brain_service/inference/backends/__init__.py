"""Backends: what a worker runs a bundle's step with. A table holds them all; nothing heavy is imported.

A backend is a module with a function `load(bundle, layout, cache_dir) -> Policy`. The worker imports it; the
daemon reads only this table: which form the backend needs in the bundle, whether this machine can run it, and
the environment of its process.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from brain_service.export.bundle import HEF, JAX_STEP, ONNX_MODEL, Bundle
from brain_service.hardware.accelerators import gpu_obstacle, package_obstacle, tpu_obstacle
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
    """One backend: its name in answers, what it needs, and how its worker is started.

    `device` is the name that `inference.backends` orders. `form` is the file and `parity` the bound that a bundle
    must hold for it. `module` is what the worker imports, in a process with `environment` on top of the daemon's
    own; `python` is its interpreter where that is not the daemon's. `probe` tells why this machine cannot run it,
    or None; it may block, and loads no runtime. An `exclusive` device belongs to one process: only the active
    model uses it.
    """

    name: str
    device: str
    form: str
    parity: str
    module: str
    environment: Mapping[str, str] = field(default_factory=dict)
    probe: Callable[[], str | None] = lambda: None
    python: str | None = None
    exclusive: bool = False


_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2"}
_JAX = "brain_service.inference.backends.jax"
_TABLE = (
    BackendEntry(
        name="hailo",
        device="hailo",
        form=HEF,
        parity="hailo",
        module="brain_service.inference.backends.hailo",
        # Where the distribution's HailoRT lives; the setting `inference.hailo_python` takes its place. What is
        # missing, the worker tells better than a look from outside could.
        python="/usr/bin/python3",
        exclusive=True,
    ),
    BackendEntry(
        name="jax-cpu",
        device="cpu",
        form=JAX_STEP,
        parity="jax",
        module=_JAX,
        # One robot's step is a chain of small matrix-vector products: handing them to a thread pool costs
        # more than it saves, and the other cores belong to capture and training.
        environment={
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
            "OMP_NUM_THREADS": "1",
        }
        | _QUIET,
        probe=lambda: package_obstacle("jax"),
    ),
    BackendEntry(
        name="onnx-cpu",
        device="cpu",
        form=ONNX_MODEL,
        parity="onnx",
        module="brain_service.inference.backends.onnx",
        environment={"OMP_NUM_THREADS": "1"},
        probe=lambda: package_obstacle("onnxruntime"),
    ),
    BackendEntry(
        name="jax-gpu",
        device="gpu",
        form=JAX_STEP,
        parity="jax",
        module=_JAX,
        # A model is loaded beside the one that serves: neither may take the whole memory for itself.
        environment={"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | _QUIET,
        probe=gpu_obstacle,
    ),
    BackendEntry(
        name="jax-tpu",
        device="tpu",
        form=JAX_STEP,
        parity="jax",
        module=_JAX,
        environment={"JAX_PLATFORMS": "tpu"} | _QUIET,
        probe=tpu_obstacle,
        exclusive=True,
    ),
)

BACKENDS: Mapping[str, BackendEntry] = {entry.name: entry for entry in _TABLE}
"""Backends by name. Of one device's backends the first is preferred until they are measured."""
