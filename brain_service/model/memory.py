"""Memory: levels of key-value slots, each level written at its own period (a continuum of time scales).

Level 1 is written at every step from z_t; level l > 1 every C_l steps from the mean of what level l - 1 returned
since. With unit keys k, values tanh(v), write gate g and slots i of a level:

    alpha = softmax(tau K.k - gamma m)      where to write: a matching slot, else a weak one
    x     = fires g alpha                   in [0, 1]
    M_i   = (1 - x_i) M_i + x_i tanh(v)     K_i = unit((1 - x_i) K_i + x_i k)
    m_i   = (1 - fires lambda)(1 - x_i) m_i + x_i
    read  = sum_i m_i exp(tau K_i.q) M_i / (null + sum_i m_i exp(tau K_i.q))

Every state is a convex mixture, so it is bounded for any input. Decay acts on the strength m, never on the keys,
and an empty slot (m = 0) takes no part in a read. Distinct learned initial keys tell the slots apart. This is
a slot memory in the manner of Graves et al. (arXiv 1410.5401) run at the periods of the Continuum Memory
System of Behrouz et al. (arXiv 2512.24695); it is not that paper's chain of MLPs trained at test time.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32

from brain_service.model.config import CoreModelConfig

__all__ = ["Memory", "MemoryState", "pack_memory", "unit", "unpack_memory"]

SHARPNESS_MAX = 10.0  # exp(10) sums safely in float32, so no softmax here needs its maximum subtracted


class MemoryState(NamedTuple):
    """The memory's part of the carry, unpacked; L levels, N slots in all, S = L - 1 slow levels."""

    slots: Float32[Array, "B N VK"]
    """Value and key of each slot."""
    strength: Float32[Array, "B N"]
    """How much each slot counts, 0 (empty) to 1."""
    elapsed: Float32[Array, "B S"]
    """Steps since each slow level was last written."""
    pending: Float32[Array, "B pending"]
    """Sum of the reads of the level below since then."""


def unpack_memory(
    config: CoreModelConfig, slots: Float32[Array, "B slots"], clock: Float32[Array, "B clock"]
) -> MemoryState:
    """Split the carry arrays `slots` and `clock` into the memory's parts, slots of shape `[B, N, V + K]`."""
    n, slow = config.slots, config.levels - 1
    return MemoryState(
        slots.reshape((slots.shape[0], n, config.d_v + config.d_k)),
        clock[:, :n],
        clock[:, n : n + slow],
        clock[:, n + slow :],
    )


def pack_memory(state: MemoryState) -> tuple[Float32[Array, "B slots"], Float32[Array, "B clock"]]:
    """Return the carry arrays `slots` and `clock`, shape `[B, n]` each: the inverse of `unpack_memory`."""
    clock = jnp.concatenate([state.strength, state.elapsed, state.pending], axis=-1)
    return state.slots.reshape((state.slots.shape[0], -1)), clock


def unit(vector: Float32[Array, "*B K"]) -> Float32[Array, "*B K"]:
    """Scale vectors, shape `[..., K]`, to length 1 along the last axis; a zero vector stays zero."""
    return vector / jnp.sqrt(jnp.sum(vector * vector, axis=-1, keepdims=True) + 1e-6)


class Memory(nn.Module):  # type: ignore[misc]
    """Reads and writes of all levels at once; a constant 0/1 matrix says which slot belongs to which level."""

    config: CoreModelConfig

    def setup(self) -> None:
        """Create the parameters."""
        config = self.config
        self.membership = np.repeat(np.eye(config.levels, dtype=np.float32), config.cms_sizes, axis=1)
        self.initial_keys = self.param("initial_keys", nn.initializers.normal(1.0), (config.slots, config.d_k))
        constant = nn.initializers.constant
        self.sharpness = self.param("sharpness", constant(0.0), (2, config.levels))
        self.avoidance = self.param("avoidance", constant(2.0), (config.levels,))
        self.null = self.param("null", constant(0.0), (config.levels,))
        width = config.d_k + config.d_v + 1
        self.writers = [nn.Dense(width, name=f"write_{level + 1}") for level in range(config.levels)]

    def _spread(self, by_level: Float32[Array, "*B L"]) -> Float32[Array, "*B N"]:
        # A product with the 0/1 matrix instead of a gather: accelerators without one compile it.
        return by_level @ self.membership

    def _sharpness(self, row: int) -> Float32[Array, "N"]:
        return self._spread(SHARPNESS_MAX * nn.sigmoid(self.sharpness[row]))

    def reset(self, state: MemoryState, is_first: Float32[Array, "B"]) -> MemoryState:
        """Return the state, rows whose `is_first` (shape `[B]`) is 1 emptied and given the learned keys."""
        config = self.config
        keys = unit(self.initial_keys)
        fresh = jnp.concatenate([jnp.zeros((config.slots, config.d_v), jnp.float32), keys], axis=-1)
        keep = 1.0 - is_first[:, None]
        return MemoryState(
            state.slots * keep[..., None] + fresh * is_first[:, None, None],
            state.strength * keep,
            state.elapsed * keep,
            state.pending * keep,
        )

    def read(self, state: MemoryState, query: Float32[Array, "B K"]) -> Float32[Array, "B L V"]:
        """Return what each level holds for the query (need not be of length 1): shape `[B, L, V]`, in [-1, 1]."""
        values, keys = state.slots[..., : self.config.d_v], state.slots[..., self.config.d_v :]
        match = (keys @ unit(query)[..., None])[..., 0]
        weight = state.strength * jnp.exp(self._sharpness(0) * match)
        by_level = weight[:, None, :] * self.membership
        null = jnp.exp(jnp.clip(self.null, -SHARPNESS_MAX, SHARPNESS_MAX))
        total = jnp.sum(by_level, axis=-1) + null
        return (by_level @ values) / total[..., None]

    def write(
        self, state: MemoryState, drive: Float32[Array, "B C"], reads: Float32[Array, "B L V"]
    ) -> MemoryState:
        """Return the state after this step's writes; `drive` is z_t, shape `[B, C]`, `reads` what `read` gave."""
        config = self.config
        fires, elapsed = self._tick(state.elapsed)
        pending = state.pending + reads[:, :-1].reshape(state.pending.shape)
        written = self._candidates(drive, pending)
        key = unit(written[..., : config.d_k])
        value = jnp.tanh(written[..., config.d_k : -1])
        gate = nn.sigmoid(written[..., -1]) * fires

        keys = state.slots[..., config.d_v :]
        match = jnp.sum(keys * (self.membership.T @ key), axis=-1)
        logits = self._sharpness(1) * match - self._spread(nn.softplus(self.avoidance)) * state.strength
        score = jnp.exp(jnp.clip(logits, -2 * SHARPNESS_MAX, SHARPNESS_MAX))
        share = self._spread(gate / (score @ self.membership.T)) * score

        mixed = state.slots * (1.0 - share[..., None]) + (share[..., None] * self.membership.T) @ jnp.concatenate(
            [value, key], axis=-1
        )
        slots = jnp.concatenate([mixed[..., : config.d_v], unit(mixed[..., config.d_v :])], axis=-1)
        faded = 1.0 - self._spread(fires * np.asarray(config.cms_decays, np.float32))
        strength = faded * (1.0 - share) * state.strength + share
        held = 1.0 - jnp.repeat(fires[:, 1:], config.d_v, axis=-1)
        return MemoryState(slots, strength, elapsed, pending * held)

    def _tick(self, elapsed: Float32[Array, "B S"]) -> tuple[Float32[Array, "B L"], Float32[Array, "B S"]]:
        # Which levels are written now (0 or 1), and the counters after it. Exact: the counters are whole numbers.
        periods = np.asarray(self.config.cms_periods[1:], np.float32)
        now = elapsed + 1.0
        slow = jnp.clip(now - (periods - 1.0), 0.0, 1.0)
        always = jnp.ones((elapsed.shape[0], 1), jnp.float32)
        return jnp.concatenate([always, slow], axis=-1), now * (1.0 - slow)

    def _candidates(
        self, drive: Float32[Array, "B C"], pending: Float32[Array, "B pending"]
    ) -> Float32[Array, "B L W"]:
        # Key, value and gate that each level would write now.
        d_v = self.config.d_v
        rows = [self.writers[0](drive)]
        for level, period in enumerate(self.config.cms_periods[1:]):
            mean = pending[:, level * d_v : (level + 1) * d_v] / period
            rows.append(self.writers[level + 1](mean))
        return jnp.stack(rows, axis=1)
