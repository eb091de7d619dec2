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

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32

from brain_service.model.config import CoreModelConfig
from brain_service.model.layers import Linear

__all__ = ["Memory", "MemoryRules", "MemoryState", "pack_memory", "unit", "unpack_memory"]

# Initial bias of the write gates: closed but for 5 %. A memory that is written at every step keeps little, and its
# slots go on changing places long after the longest episode of training.
GATE_BIAS = -3.0
SHARPNESS_MAX = 10.0  # exp(10) sums safely in float32, so no softmax here needs its maximum subtracted


class MemoryState(NamedTuple):
    """The memory's part of the carry, unpacked; L levels, N slots in all, S = L - 1 slow levels."""

    values: Float32[Array, "B N V"]
    """Value of each slot."""
    keys: Float32[Array, "B N K"]
    """Key of each slot."""
    strength: Float32[Array, "B N"]
    """How much each slot counts, 0 (empty) to 1."""
    elapsed: Float32[Array, "B S"]
    """Steps since each slow level was last written."""
    pending: Float32[Array, "B pending"]
    """Sum of the reads of the level below since then."""


class MemoryRules(NamedTuple):
    """What the parameters alone decide, computed once for all steps of a sequence."""

    read_sharpness: Float32[Array, "N"]
    write_sharpness: Float32[Array, "N"]
    avoidance: Float32[Array, "N"]
    """How much a slot's strength counts against writing to it."""
    null: Float32[Array, "L"]
    """Weight of the empty answer."""
    keys: Float32[Array, "N K"]
    """Keys of a fresh memory."""


def unpack_memory(
    config: CoreModelConfig, slots: Float32[Array, "B slots"], clock: Float32[Array, "B clock"]
) -> MemoryState:
    """Split the carry arrays `slots` and `clock` into the memory's parts."""
    n, slow, rows = config.slots, config.levels - 1, slots.shape[0]
    pairs = slots.reshape((rows, n, config.d_v + config.d_k))
    return MemoryState(
        pairs[..., : config.d_v],
        pairs[..., config.d_v :],
        clock[:, :n],
        clock[:, n : n + slow],
        clock[:, n + slow :],
    )


def pack_memory(state: MemoryState) -> tuple[Float32[Array, "B slots"], Float32[Array, "B clock"]]:
    """Return the carry arrays `slots` and `clock`, shape `[B, n]` each: the inverse of `unpack_memory`."""
    slots = jnp.concatenate([state.values, state.keys], axis=-1)
    clock = jnp.concatenate([state.strength, state.elapsed, state.pending], axis=-1)
    return slots.reshape((slots.shape[0], -1)), clock


def unit(vector: Float32[Array, "*B K"]) -> Float32[Array, "*B K"]:
    """Scale vectors, shape `[..., K]`, to length 1 along the last axis; a zero vector stays zero."""
    return vector / jnp.sqrt(jnp.sum(vector * vector, axis=-1, keepdims=True) + 1e-6)


def _closed_gate(_rng: Array, shape: tuple[int, ...], dtype: Any) -> Float32[Array, "W"]:
    # The last output of a writer is its gate.
    return jnp.zeros(shape, dtype).at[-1].set(GATE_BIAS)


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
        self.writers = [
            Linear(config, width, bias_init=_closed_gate, name=f"write_{level + 1}")
            for level in range(config.levels)
        ]

    def _spread(self, by_level: Float32[Array, "*B L"]) -> Float32[Array, "*B N"]:
        # Products with the 0/1 rows instead of a gather: accelerators without one compile them, and they fuse.
        spread: Array = by_level[..., :1] * self.membership[0]
        for level in range(1, self.config.levels):
            spread = spread + by_level[..., level : level + 1] * self.membership[level]
        return spread

    def rules(self) -> MemoryRules:
        """Return what the parameters alone decide."""
        sharpness = self._spread(SHARPNESS_MAX * nn.sigmoid(self.sharpness))
        return MemoryRules(
            sharpness[0],
            sharpness[1],
            self._spread(nn.softplus(self.avoidance)),
            jnp.exp(jnp.clip(self.null, -SHARPNESS_MAX, SHARPNESS_MAX)),
            unit(self.initial_keys),
        )

    def read(
        self, rules: MemoryRules, state: MemoryState, is_first: Float32[Array, "B"], query: Float32[Array, "B K"]
    ) -> Float32[Array, "B L V"]:
        """Return what each level holds for the query (need not be of length 1): shape `[B, L, V]`, in [-1, 1].

        Rows whose `is_first` is 1 read as empty.
        """
        match = (state.keys @ unit(query)[..., None])[..., 0]
        strength = state.strength * (1.0 - is_first[:, None])
        weight = strength * jnp.exp(rules.read_sharpness * match)
        by_level = weight[:, None, :] * self.membership
        total = jnp.sum(by_level, axis=-1) + rules.null
        return (by_level @ state.values) / total[..., None]

    def write(
        self,
        rules: MemoryRules,
        state: MemoryState,
        is_first: Float32[Array, "B"],
        drive: Float32[Array, "B C"],
        reads: Float32[Array, "B L V"],
    ) -> MemoryState:
        """Return the state after this step's writes; `drive` is z_t, `reads` what `read` gave.

        Rows whose `is_first` is 1 are written as if they were empty, with the learned keys.
        """
        # The reset is folded into the arithmetic below: one pass over the slots less.
        first = is_first[:, None]
        keep = 1.0 - first
        fires, elapsed = self._tick(state.elapsed * keep)
        pending = state.pending * keep + reads[:, :-1].reshape(state.pending.shape)
        value, key, gate = self._candidates(drive, pending)
        strength = state.strength * keep

        old, fresh = (keys @ jnp.swapaxes(key, 1, 2) for keys in (state.keys, rules.keys))
        match = jnp.sum((keep[..., None] * old + first[..., None] * fresh) * self.membership.T, axis=-1)
        logits = rules.write_sharpness * match - rules.avoidance * strength
        score = jnp.exp(jnp.clip(logits, -2 * SHARPNESS_MAX, SHARPNESS_MAX))
        share = self._spread(gate * fires / (score @ self.membership.T)) * score

        stay, by_level = (1.0 - share) * keep, share[..., None] * self.membership.T
        values = stay[..., None] * state.values + by_level @ value
        begun = ((1.0 - share) * first)[..., None] * rules.keys
        keys = unit(stay[..., None] * state.keys + begun + by_level @ key)
        faded = 1.0 - self._spread(fires * np.asarray(self.config.cms_decays, np.float32))
        strength = faded * (1.0 - share) * strength + share
        held = 1.0 - jnp.repeat(fires[:, 1:], self.config.d_v, axis=-1)
        return MemoryState(values, keys, strength, elapsed, pending * held)

    def _tick(self, elapsed: Float32[Array, "B S"]) -> tuple[Float32[Array, "B L"], Float32[Array, "B S"]]:
        # Which levels are written now (0 or 1), and the counters after it. Exact: the counters are whole numbers.
        periods = np.asarray(self.config.cms_periods[1:], np.float32)
        now = elapsed + 1.0
        slow = jnp.clip(now - (periods - 1.0), 0.0, 1.0)
        always = jnp.ones((elapsed.shape[0], 1), jnp.float32)
        return jnp.concatenate([always, slow], axis=-1), now * (1.0 - slow)

    def _candidates(
        self, drive: Float32[Array, "B C"], pending: Float32[Array, "B pending"]
    ) -> tuple[Float32[Array, "B L V"], Float32[Array, "B L K"], Float32[Array, "B L"]]:
        # Value, key and gate that each level would write now.
        d_k, d_v = self.config.d_k, self.config.d_v
        rows = [self.writers[0](drive)]
        for level, period in enumerate(self.config.cms_periods[1:]):
            mean = pending[:, level * d_v : (level + 1) * d_v] / period
            rows.append(self.writers[level + 1](mean))
        written = jnp.concatenate([row[:, None] for row in rows], axis=1)
        return jnp.tanh(written[..., d_k:-1]), unit(written[..., :d_k]), nn.sigmoid(written[..., -1])
