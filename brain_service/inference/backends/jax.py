"""JAX: runs `step.jaxexport`, or the step rebuilt from config and parameters where that is unreadable.

The same on a CPU, GPU and TPU: `JAX_PLATFORMS` in the worker's environment says which one it is. Imported by
workers only.
"""

import logging
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float32, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from brain_service.errors import CorruptDataError, UnavailableError
from brain_service.export.bundle import JAX_STEP, PARAMS, Bundle
from brain_service.inference.arena import Layout

__all__ = ["load"]

log = logging.getLogger(__name__)

# The bytes are those that were exported, so what fails is another version's file form (flatbuffers then reads
# fields that are not there), calling convention, operator or device.
_UNREADABLE = (AttributeError, LookupError, TypeError, ValueError, RuntimeError, struct.error)

Params = Mapping[str, Float32[np.ndarray, "..."]]
PolicyStep = Callable[..., tuple[tuple[Array, ...], Array]]
PackedStep = Callable[
    [Float32[np.ndarray, "B C"], Float32[np.ndarray, "B R"]],
    tuple[Float32[Array, "B C"], Float32[Array, "B HA"]],
]


# Batches that a step is compiled for. Four rows cost a small model little more than one, 64 are all sessions of
# the default settings; each size is a program of its own, so there are few.
_BUCKETS = (1, 4, 16, 64)


class _JaxPolicy:
    def __init__(self, step: PackedStep, buckets: tuple[int, ...]) -> None:
        self.buckets = buckets
        self._step = step

    def run(
        self,
        carry: Float32[np.ndarray, "B C"],
        request: Float32[np.ndarray, "B R"],
        next_carry: Float32[np.ndarray, "B C"],
        response: Float32[np.ndarray, "B HA"],
    ) -> None:
        """Run one step of each row; the first call with a number of rows compiles. See `Policy.run`."""
        new, actions = self._step(carry, request)
        response[...] = np.asarray(actions)
        next_carry[...] = np.asarray(new)


def load(bundle: Bundle, layout: Layout, cache_dir: Path) -> _JaxPolicy:
    """Load a bundle's step and compile it for one row; see `PolicyLoader`.

    Raises:
        UnavailableError: there is no such device, or neither the exported nor the rebuilt step compiles here.
        CorruptDataError: the parameters cannot be read.
    """
    for option, value in _caching(cache_dir).items():
        jax.config.update(option, value)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        # The latter, without a word, where JAX has no plugin for the platform.
        platform = jax.config.jax_platforms  # type: ignore[attr-defined]
        raise UnavailableError(
            f"jax {jax.__version__} finds no device of platform {platform!r}: {error}"
        ) from error
    try:
        params = load_safetensors(bundle.read(PARAMS))
    except SafetensorError as error:
        raise CorruptDataError(f"{bundle.path / PARAMS}: {error}") from error
    try:
        exported = export.deserialize(bytearray(bundle.read(JAX_STEP)))
        # The last input is is_first [B] or an image [B, ...]; bundles of before were exported for one row.
        buckets = _BUCKETS if export.is_symbolic_dim(exported.in_avals[-1].shape[0]) else _BUCKETS[:1]
        return _compile(exported.call, params, layout, buckets)
    except _UNREADABLE as error:
        log.warning("%s is unreadable to jax %s, rebuilding the step: %s", JAX_STEP, jax.__version__, error)
    try:
        # Only here, in a worker, and only when the export cannot be read: the model's own code.
        from brain_service.export.policy import policy_step_of

        return _compile(policy_step_of(bundle.manifest), params, layout, _BUCKETS)
    except _UNREADABLE as error:
        raise UnavailableError(
            f"jax {jax.__version__} can neither read {JAX_STEP} nor rebuild the step: {error}; "
            "export the checkpoint again with this version"
        ) from error


def _caching(cache_dir: Path) -> Mapping[str, str | float]:
    return {
        "jax_compilation_cache_dir": str(cache_dir / "xla"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }


def _compile(step: PolicyStep, params: Params, layout: Layout, buckets: tuple[int, ...]) -> _JaxPolicy:
    """Compile for whole rows in and out, with the parameters inside.

    Each argument of a call costs about a microsecond of dispatch: 34 parameter arrays were a fifth of a step.
    """
    cuts = np.cumsum(list(layout.carry.values()))[:-1].tolist()
    D, A = layout.observation, layout.action

    @jax.jit
    def packed(
        carry: Float32[Array, "B C"], request: Float32[Array, "B R"]
    ) -> tuple[Float32[Array, "B C"], Float32[Array, "B HA"]]:
        seen = [_image(request[:, layout.vector_size :], layout)] if layout.image else []
        new, actions = step(
            params,
            tuple(jnp.split(carry, cuts, axis=1)),
            request[:, :D],
            request[:, D : D + A],
            request[:, D + A],
            request[:, D + A + 1],
            *seen,
        )
        return jnp.concatenate(new, axis=1), actions.reshape(actions.shape[0], -1)

    policy = _JaxPolicy(packed, buckets)
    # The first call compiles; whatever is wrong with the step shows here.
    policy.run(*(np.zeros((1, size), np.float32) for size in _sizes(layout)))
    return policy


def _image(floats: Float32[Array, "B P"], layout: Layout) -> UInt8[Array, "B h w C"]:
    """Return the pixels whose bytes lie in a request, four to a float."""
    raw = jax.lax.bitcast_convert_type(floats, jnp.uint8).reshape(floats.shape[0], -1)
    return raw[:, : layout.image_bytes].reshape(-1, *layout.image)


def _sizes(layout: Layout) -> tuple[int, int, int, int]:
    return layout.carry_size, layout.request_size, layout.carry_size, layout.response_size
