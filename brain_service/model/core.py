"""CoreModel: encoder, wave, step-by-step cell and heads, as one step or over a sequence.

Over a sequence the encoder, the wave's gates, the cell's input products and the heads run on all B * T steps at
once; only the wave's elementwise recurrence and the cell run in time.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float32, Key

from brain_service.model.cell import Cell, CellState, Drive, pack_carry, unpack_cell
from brain_service.model.config import CoreModelConfig
from brain_service.model.heads import Encoder, Heads
from brain_service.model.layers import Linear
from brain_service.model.memory import MemoryRules
from brain_service.model.signals import StepInputs, StepOutputs
from brain_service.model.state import Carry, init_carry
from brain_service.model.wave import Wave, WaveDrive, wave_sequence, wave_step

__all__ = ["CoreModel", "Params", "count_parameters", "init_params", "step", "unroll"]

Params = dict[str, Any]
"""Nested maps of float32 parameter arrays."""


class CoreModel(nn.Module):  # type: ignore[misc]
    """A recurrent policy and world model with bounded state.

    `step` advances one time step and `unroll` (also `__call__`) a sequence; they give the same numbers. A row
    whose `is_first` is 1 starts from a fresh state, whatever the carry holds. All values are normalised float32.
    """

    config: CoreModelConfig

    def setup(self) -> None:
        """Create the parts."""
        config = self.config
        self.encoder = Encoder(config, name="encoder")
        self.wave = Wave(config, name="wave")
        self.cell = Cell(config, name="cell")
        self.heads = Heads(config, name="heads")
        self.drive = Linear(config, config.d_k + config.d_c + config.d_s, name="drive")
        self.from_wave = Linear(config, config.d_s, use_bias=False, name="from_wave")

    def step(self, carry: Carry, inputs: StepInputs) -> tuple[Carry, StepOutputs]:
        """Advance one step: inputs and outputs of shape `[B, ...]`."""
        encoded, gates = self._before(inputs)
        wave = wave_step(carry.wave, gates)
        state, features = self.cell(
            self.cell.rules(), unpack_cell(self.config, carry), self._drive(encoded, wave, inputs)
        )
        return pack_carry(state, wave), self._after(encoded, wave, features, inputs)

    def unroll(self, carry: Carry, inputs: StepInputs) -> tuple[Carry, StepOutputs]:
        """Advance T steps: inputs and outputs of shape `[B, T, ...]`."""
        encoded, gates = self._before(inputs)
        wave = self._waves(carry.wave, gates)
        over_time = nn.scan(
            _advance,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=(nn.broadcast, 1),
            out_axes=1,
        )
        state, features = over_time(
            self.cell,
            unpack_cell(self.config, carry),
            self.cell.rules(),
            self._drive(encoded, wave, inputs),
        )
        return pack_carry(state, wave[:, -1]), self._after(encoded, wave, features, inputs)

    def __call__(self, carry: Carry, inputs: StepInputs) -> tuple[Carry, StepOutputs]:
        """Do `unroll`."""
        return self.unroll(carry, inputs)

    def _before(self, inputs: StepInputs) -> tuple[Float32[Array, "B *T E"], WaveDrive]:
        encoded = self.encoder(inputs)
        return encoded, self.wave(encoded, inputs.is_first)

    def _waves(self, wave: Float32[Array, "B W"], gates: WaveDrive) -> Float32[Array, "B T W"]:
        in_order = partial(wave_sequence, associative=False)
        if not self.config.associative_wave:
            return in_order(wave, gates)
        # The parallel form makes log T passes over memory: on a CPU it loses at every length (`make bench`), and
        # it doubles the time to compile. Decided where the program is lowered, which may be for another device.
        parallel = partial(wave_sequence, associative=True)
        waves: Array = jax.lax.platform_dependent(wave, gates, cpu=in_order, default=parallel)
        return waves

    def _drive(
        self, encoded: Float32[Array, "B *T E"], wave: Float32[Array, "B *T W"], inputs: StepInputs
    ) -> Drive:
        mixed = self.drive(jnp.concatenate([encoded, wave], axis=-1))
        return Drive(mixed, self.from_wave(wave), inputs.is_first)

    def _after(
        self,
        encoded: Float32[Array, "B *T E"],
        wave: Float32[Array, "B *T W"],
        features: Float32[Array, "B *T F"],
        inputs: StepInputs,
    ) -> StepOutputs:
        features = jnp.concatenate([encoded, wave, features], axis=-1)
        outputs: StepOutputs = self.heads(features, inputs.observation)
        return outputs


# Rematerialised: of each step the backward pass keeps the state and the products with weights, and computes the
# rest again. That is cheaper than moving it through memory, and a long episode fits.
@partial(nn.remat, prevent_cse=False, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
def _advance(
    cell: Cell, state: CellState, rules: MemoryRules, drive: Drive
) -> tuple[CellState, Float32[Array, "B F"]]:
    result: tuple[CellState, Array] = cell(rules, state, drive)
    return result


def init_params(config: CoreModelConfig, rng: Key[Array, ""]) -> Params:
    """Return freshly initialised float32 parameters, whose shapes follow from `config` alone."""
    return dict(_init(config, rng))


# Compiled as one: kernel by kernel, the initialisers take ten seconds to compile on a small machine.
@partial(jax.jit, static_argnums=0)
def _init(config: CoreModelConfig, rng: Key[Array, ""]) -> Params:
    inputs = StepInputs(
        jnp.zeros((1, config.obs_dim), jnp.float32),
        jnp.zeros((1, config.action_dim), jnp.float32),
        jnp.zeros((1,), jnp.float32),
        jnp.ones((1,), jnp.float32),
        jnp.zeros((1, *config.image_shape), jnp.uint8) if config.image_shape else None,
    )
    params: Params = CoreModel(config).init(rng, init_carry(config, 1), inputs, method="step")["params"]
    return params


def step(params: Params, config: CoreModelConfig, carry: Carry, inputs: StepInputs) -> tuple[Carry, StepOutputs]:
    """Advance one step to the next carry: inputs and outputs of shape `[B, ...]`, in normalised units."""
    result: tuple[Carry, StepOutputs] = CoreModel(config).apply({"params": params}, carry, inputs, method="step")
    return result


def unroll(params: Params, config: CoreModelConfig, carry: Carry, inputs: StepInputs) -> tuple[Carry, StepOutputs]:
    """Advance T steps to the last carry: inputs and outputs of shape `[B, T, ...]`, in normalised units."""
    result: tuple[Carry, StepOutputs] = CoreModel(config).apply({"params": params}, carry, inputs, method="unroll")
    return result


def count_parameters(params: Params) -> int:
    """Return the number of scalars in the parameters."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))
