"""From a checkpoint to what a robot serves: the bundle, and the compiled forms of a policy step inside it.

`bundle` and `manifest` need only the standard library and NumPy: the daemon and every worker read them.
`saved_model` needs no more than these, and has its work done by child processes. The rest imports JAX and runs in
jobs, workers and commands only.
"""

from typing import TYPE_CHECKING

from brain_service.lazy import lazy_names

if TYPE_CHECKING:
    from brain_service.export.bundle import Bundle, write_bundle
    from brain_service.export.jax_step import export_jax
    from brain_service.export.manifest import Manifest

__all__ = ["Bundle", "Manifest", "export_jax", "write_bundle"]

__getattr__ = lazy_names(
    __name__,
    {"Bundle": "bundle", "Manifest": "manifest", "export_jax": "jax_step", "write_bundle": "bundle"},
)
