"""The part of the torch model that must run step by step: memory, particle and fast state.

The arithmetic is that of `model/cell.py`, `model/memory.py` and `model/particle.py`. Here a small operation costs
as much as a large one, so whatever can leaves the loop over time: the memory's clock, which no parameter moves, is
run ahead for the whole sequence, and rows are reset only at steps where some episode begins.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.nn import functional

from brain_service.model.config import CoreModelConfig
from brain_service.model.memory import SHARPNESS_MAX
from brain_service.training.torch_lora.layers import Linear, unit
from brain_service.training.torch_lora.signals import Carry

__all__ = ["Beat", "Cell", "CellState", "Rules", "pack_carry", "unpack_carry"]


class CellState(NamedTuple):
    """The carry without the wave and the clock's counters; N slots, S slow levels."""

    fast: Float32[Tensor, "B S"]
    particle: Float32[Tensor, "B P"]
    values: Float32[Tensor, "B N V"]
    keys: Float32[Tensor, "B N K"]
    strength: Float32[Tensor, "B N"]
    pending: Float32[Tensor, "B pending"]


class Rules(NamedTuple):
    """What the parameters alone decide, computed once for all steps of a sequence."""

    read_sharpness: Float32[Tensor, "N"]
    write_sharpness: Float32[Tensor, "N"]
    avoidance: Float32[Tensor, "N"]
    null: Float32[Tensor, "L"]
    keys: Float32[Tensor, "N K"]
    rate: Float32[Tensor, "S"]


class Beat(NamedTuple):
    """What the clock alone decides about the memory's writes at one step."""

    fires: Float32[Tensor, "B L"]
    """1 where a level is written now."""
    faded: Float32[Tensor, "B N"]
    """Share of each slot's strength that stays."""
    held: Float32[Tensor, "B pending"]
    """0 where the sum of reads begins anew."""


def unpack_carry(config: CoreModelConfig, carry: Carry) -> tuple[CellState, Float32[Tensor, "B slow"]]:
    """Take the cell's state out of the carry, and the steps since each slow level was last written.

    The steps have the shape `[B, L - 1]`.
    """
    n, slow = config.slots, config.levels - 1
    pairs = carry.slots.reshape(-1, n, config.d_v + config.d_k)
    strength, elapsed, pending = torch.split(carry.clock, [n, slow, slow * config.d_v], dim=-1)
    fast, particle = torch.split(carry.fast, [config.d_s, config.d_p], dim=-1)
    values, keys = torch.split(pairs, [config.d_v, config.d_k], dim=-1)
    return CellState(fast, particle, values, keys, strength, pending), elapsed


def pack_carry(state: CellState, elapsed: Float32[Tensor, "B slow"], wave: Float32[Tensor, "B W"]) -> Carry:
    """Return the carry of a cell's state, the clock's counters and a wave: the inverse of `unpack_carry`.

    The counters are the steps since each slow level was last written, shape `[B, L - 1]`.
    """
    slots = torch.cat([state.values, state.keys], dim=-1).flatten(1)
    clock = torch.cat([state.strength, elapsed, state.pending], dim=-1)
    return Carry(torch.cat([state.fast, state.particle], dim=-1), wave, slots, clock)


class _Particle(nn.Module):
    def __init__(self, config: CoreModelConfig) -> None:
        super().__init__()
        self.hidden = Linear(config, config.d_p + config.d_c, config.d_c)
        self.move = Linear(config, config.d_c, 2 * config.d_p)

    def forward(self, particle: Float32[Tensor, "B P"], drive: Float32[Tensor, "B C"]) -> Float32[Tensor, "B P"]:
        hidden = functional.silu(self.hidden(torch.cat([particle, drive], dim=-1)))
        target, rate = self.move(hidden).chunk(2, dim=-1)
        return torch.lerp(particle, torch.tanh(target), torch.sigmoid(rate))


class _Memory(nn.Module):
    membership: Tensor
    decays: Tensor
    periods: Tensor

    def __init__(self, config: CoreModelConfig) -> None:
        super().__init__()
        self.config = config
        levels, width = config.levels, config.d_k + config.d_v + 1
        self.initial_keys = nn.Parameter(torch.zeros(config.slots, config.d_k))
        self.sharpness = nn.Parameter(torch.zeros(2, levels))
        self.avoidance = nn.Parameter(torch.zeros(levels))
        self.null = nn.Parameter(torch.zeros(levels))
        writers = [Linear(config, config.d_v if level else config.d_c, width) for level in range(levels)]
        for level, writer in enumerate(writers):
            self.add_module(f"write_{level + 1}", writer)
        self._writers = tuple(writers)
        membership = np.repeat(np.eye(levels, dtype=np.float32), config.cms_sizes, axis=1)
        self.register_buffer("membership", torch.from_numpy(membership), persistent=False)
        self.register_buffer("decays", torch.tensor(config.cms_decays), persistent=False)
        periods = torch.tensor(config.cms_periods[1:], dtype=torch.float32)
        self.register_buffer("periods", periods, persistent=False)

    def beats(
        self, elapsed: Float32[Tensor, "B slow"], is_first: Float32[Tensor, "B T"]
    ) -> tuple[list[Beat], Float32[Tensor, "B slow"]]:
        """Run the clock over T steps; return every step's beat and the last counters. They have no gradient."""
        ones, fired = torch.ones_like(is_first[:, :1]), []
        for keep in (1.0 - is_first).unbind(1):
            now = elapsed * keep[:, None] + 1.0
            slow = torch.clamp(now - (self.periods - 1.0), 0.0, 1.0)
            elapsed = now * (1.0 - slow)
            fired.append(torch.cat([ones, slow], dim=-1))
        fires = torch.stack(fired, dim=1)
        faded = 1.0 - (fires * self.decays) @ self.membership
        held = 1.0 - fires[..., 1:].repeat_interleave(self.config.d_v, dim=-1)
        beats = zip(fires.unbind(1), faded.unbind(1), held.unbind(1), strict=True)
        return [Beat(*beat) for beat in beats], elapsed

    def read(self, rules: Rules, state: CellState, query: Float32[Tensor, "B K"]) -> Float32[Tensor, "B L V"]:
        match = torch.bmm(state.keys, unit(query).unsqueeze(-1)).squeeze(-1)
        weight = state.strength * torch.exp(rules.read_sharpness * match)
        total = weight @ self.membership.T + rules.null
        return torch.bmm(weight.unsqueeze(1) * self.membership, state.values) / total.unsqueeze(-1)

    def write(
        self,
        rules: Rules,
        state: CellState,
        beat: Beat,
        drive: Float32[Tensor, "B C"],
        reads: Float32[Tensor, "B L V"],
    ) -> CellState:
        pending = state.pending + reads[:, :-1].flatten(1)
        value, key, gate = self._candidates(drive, pending)
        match = (torch.bmm(state.keys, key.transpose(1, 2)) * self.membership.T).sum(-1)
        logits = rules.write_sharpness * match - rules.avoidance * state.strength
        score = torch.exp(torch.clamp(logits, -2 * SHARPNESS_MAX, SHARPNESS_MAX))
        share = (gate * beat.fires / (score @ self.membership.T)) @ self.membership * score

        stay, by_level = 1.0 - share, share.unsqueeze(-1) * self.membership.T
        values = torch.baddbmm(stay.unsqueeze(-1) * state.values, by_level, value)
        keys = unit(torch.baddbmm(stay.unsqueeze(-1) * state.keys, by_level, key))
        strength = torch.addcmul(share, beat.faded * stay, state.strength)
        return state._replace(values=values, keys=keys, strength=strength, pending=pending * beat.held)

    def _candidates(
        self, drive: Float32[Tensor, "B C"], pending: Float32[Tensor, "B pending"]
    ) -> tuple[Float32[Tensor, "B L V"], Float32[Tensor, "B L K"], Float32[Tensor, "B L"]]:
        # Value, key and gate that each level would write now.
        d_k, d_v = self.config.d_k, self.config.d_v
        rows = [self._writers[0](drive)]
        slow = zip(self._writers[1:], torch.split(pending, d_v, dim=-1), self.config.cms_periods[1:], strict=False)
        for writer, sums, period in slow:
            rows.append(writer(sums / period))
        key, value, gate = torch.split(torch.stack(rows, dim=1), [d_k, d_v, 1], dim=-1)
        return torch.tanh(value), unit(key), torch.sigmoid(gate.squeeze(-1))


class Cell(nn.Module):
    """One step of memory, particle and fast state."""

    def __init__(self, config: CoreModelConfig) -> None:
        super().__init__()
        self.config = config
        self.memory = _Memory(config)
        self.particle = _Particle(config)
        self.from_fast = Linear(config, config.d_s, config.d_k + config.d_c + config.d_s, use_bias=False)
        self.from_reads = Linear(config, config.levels * config.d_v, config.d_c + config.d_s, use_bias=False)
        self.from_particle = Linear(config, config.d_p, config.d_s, use_bias=False)
        self.rate = nn.Parameter(torch.zeros(config.d_s))

    def rules(self) -> Rules:
        """Return what the parameters alone decide about a step."""
        memory = self.memory
        sharpness = (SHARPNESS_MAX * torch.sigmoid(memory.sharpness)) @ memory.membership
        return Rules(
            sharpness[0],
            sharpness[1],
            functional.softplus(memory.avoidance) @ memory.membership,
            torch.exp(torch.clamp(memory.null, -SHARPNESS_MAX, SHARPNESS_MAX)),
            unit(memory.initial_keys),
            torch.sigmoid(self.rate),
        )

    def reset(self, rules: Rules, state: CellState, is_first: Float32[Tensor, "B"]) -> CellState:
        """Return the state with the rows made fresh whose `is_first` is 1."""
        first = is_first[:, None]
        keep = 1.0 - first
        return CellState(
            state.fast * keep,
            state.particle * keep,
            state.values * keep[..., None],
            state.keys * keep[..., None] + first[..., None] * rules.keys,
            state.strength * keep,
            state.pending * keep,
        )

    def forward(
        self,
        rules: Rules,
        state: CellState,
        beat: Beat,
        mixed: Float32[Tensor, "B KCS"],
        wave: Float32[Tensor, "B S"],
    ) -> tuple[CellState, Float32[Tensor, "B F"]]:
        """Return the next state, and s_t, p_t and the memory reads side by side for the heads."""
        config = self.config
        mixed = mixed + self.from_fast(state.fast)
        query, mixed = torch.split(mixed, [config.d_k, config.d_c + config.d_s], dim=-1)
        reads = self.memory.read(rules, state, query)
        flat_reads = reads.flatten(1)
        mixed = mixed + self.from_reads(flat_reads)
        context, gate = torch.split(mixed, [config.d_c, config.d_s], dim=-1)
        context, gate = functional.silu(context), torch.sigmoid(gate)

        particle = self.particle(state.particle, context)
        target = torch.tanh(torch.lerp(wave, self.from_particle(particle), gate))
        fast = torch.lerp(state.fast, target, rules.rate)
        state = self.memory.write(rules, state, beat, context, reads)
        state = state._replace(fast=fast, particle=particle)
        return state, torch.cat([fast, particle, flat_reads], dim=-1)
