"""Compiled programs kept on disk, so that the second run of the same sizes begins at once."""

from pathlib import Path

import jax

__all__ = ["keep_compiled"]


def keep_compiled(cache_dir: str | Path, *, least_s: float = 0.0) -> None:
    """Keep what JAX compiles in `cache_dir/xla`, unless `JAX_COMPILATION_CACHE_DIR` names another place.

    The directory may be `gs://bucket/path`; then leave out with `least_s` what compiles faster than it is fetched.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", f"{str(cache_dir).rstrip('/')}/xla")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least_s)
