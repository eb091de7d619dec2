"""The part of CoreModel that must run step by step: memory, particle and fast state.

    q_t = Q [e_t, w_t] + Q' s_{t-1}              c_t = memory reads for q_t
    z_t = silu(Z [e_t, w_t] + Z' s_{t-1} + Z'' c_t)
    g_t = sigmoid(G [e_t, w_t] + G' s_{t-1} + G'' c_t)
    p_t = particle(p_{t-1}, z_t)
    s_t = s_{t-1} + r (tanh(g_t P p_t + (1 - g_t) W w_t) - s_{t-1})       r: a learned rate a channel, in (0, 1)

What depends on the input alone (everything that multiplies e_t or w_t) comes in as `Drive`, computed for the whole
sequence at once.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float32

from brain_service.model.config import CoreModelConfig
from brain_service.model.layers import Linear
from brain_service.model.memory import Memory, MemoryRules, MemoryState, pack_memory, unpack_memory
from brain_service.model.particle import Particle
from brain_service.model.state import Carry

__all__ = ["Cell", "CellState", "Drive", "pack_carry", "unpack_cell"]


class Drive(NamedTuple):
    """What the inputs alone decide about a step."""

    mixed: Float32[Array, "B *T KCS"]
    """Input part of query, context and gate, side by side."""
    wave: Float32[Array, "B *T S"]
    """The wave as the fast state sees it, W w_t."""
    is_first: Float32[Array, "B *T"]
    """1 where an episode begins."""


class CellState(NamedTuple):
    """The carry without the wave, unpacked: slicing packed arrays at every step is what a gradient pays for."""

    fast: Float32[Array, "B S"]
    particle: Float32[Array, "B P"]
    memory: MemoryState


def unpack_cell(config: CoreModelConfig, carry: Carry) -> CellState:
    """Take the cell's state out of the carry, whose arrays have the shapes of `carry_shapes`."""
    memory = unpack_memory(config, carry.slots, carry.clock)
    return CellState(carry.fast[:, : config.d_s], carry.fast[:, config.d_s :], memory)


def pack_carry(state: CellState, wave: Float32[Array, "B W"]) -> Carry:
    """Return the carry of a cell's state and a wave: the inverse of `unpack_cell`."""
    slots, clock = pack_memory(state.memory)
    return Carry(jnp.concatenate([state.fast, state.particle], axis=-1), wave, slots, clock)


class Cell(nn.Module):  # type: ignore[misc]
    """One step of memory, particle and fast state."""

    config: CoreModelConfig

    def setup(self) -> None:
        """Create the layers."""
        config = self.config
        width = config.d_k + config.d_c + config.d_s
        self.memory = Memory(config, name="memory")
        self.particle = Particle(config, name="particle")
        self.from_fast = Linear(config, width, use_bias=False, name="from_fast")
        self.from_reads = Linear(config, config.d_c + config.d_s, use_bias=False, name="from_reads")
        self.from_particle = Linear(config, config.d_s, use_bias=False, name="from_particle")
        self.rate = self.param("rate", nn.initializers.uniform(4.0), (config.d_s,))

    def rules(self) -> MemoryRules:
        """Return what the parameters alone decide about a step."""
        rules: MemoryRules = self.memory.rules()
        return rules

    def __call__(
        self, rules: MemoryRules, state: CellState, drive: Drive
    ) -> tuple[CellState, Float32[Array, "B F"]]:
        """Return the next state, and s_t, p_t and the memory reads side by side for the heads."""
        config = self.config
        keep = 1.0 - drive.is_first[:, None]
        fast = state.fast * keep

        mixed = drive.mixed + self.from_fast(fast)
        reads = self.memory.read(rules, state.memory, drive.is_first, mixed[:, : config.d_k])
        flat_reads = reads.reshape((reads.shape[0], -1))
        mixed = mixed[:, config.d_k :] + self.from_reads(flat_reads)
        context, gate = nn.silu(mixed[:, : config.d_c]), nn.sigmoid(mixed[:, config.d_c :])

        particle = self.particle(state.particle * keep, context)
        target = jnp.tanh(gate * self.from_particle(particle) + (1.0 - gate) * drive.wave)
        # Rates from one half up: a fast state; slow time scales belong to the wave.
        fast = fast + nn.sigmoid(self.rate) * (target - fast)
        memory = self.memory.write(rules, state.memory, drive.is_first, context, reads)
        return CellState(fast, particle, memory), jnp.concatenate([fast, particle, flat_reads], axis=-1)
