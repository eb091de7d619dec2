"""The models that are compared, all behind one shape: CoreModel, its ablations, and a GRU and an MLP of its size.

The baselines have CoreModel's own encoder and heads; only what lies between differs, and its width is chosen so
that the whole has as many parameters. An ablation is CoreModel itself with the weights that write into one state
held at zero: the state stays zero, exactly, and the rest is untouched.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float32, Key

from brain_service.model.config import CoreModelConfig
from brain_service.model.core import count_parameters, init_params, step, unroll
from brain_service.model.heads import Encoder, Heads
from brain_service.model.signals import StepInputs, StepOutputs
from brain_service.model.state import init_carry

__all__ = ["MODELS", "REVISIONS", "SIZES", "Policy", "make_policy"]

# Between `development` and a microcontroller: a cell of the table trains in minutes on one core.
SIZES: dict[str, Any] = {
    "d_e": 64,
    "d_s": 32,
    "d_w": 192,
    "d_p": 16,
    "d_c": 32,
    "d_h": 128,
    "cms_sizes": (4, 8, 8),
}

MODELS = ("core", "gru", "mlp", "core-no-cms", "core-no-wave")

# Part of a cell's settings. Count up CoreModel's where its equations, initial values or defaults change what it
# learns, and all of them where its number of parameters changes, which the baselines follow, or what is minimised.
REVISIONS = {"core": 3, "gru": 2, "mlp": 2, "core-no-cms": 3, "core-no-wave": 3}

Params = Any
Carry = Any

# Where an ablation holds weights at zero. The wave's input is tanh(U e) of `project`, a memory value tanh of
# `write_*`: with zero weights both are zero, and so is what they are summed into.
ABLATIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "core": (),
    "core-no-cms": (("cell", "memory", "write_"),),
    "core-no-wave": (("wave", "project"),),
}


@dataclass(frozen=True)
class Policy:
    """One model for one task; `step` and `unroll` have CoreModel's signatures without the config."""

    name: str
    parameters: int
    """Scalars that training may change."""
    init: Callable[[Key[Array, ""]], Params]
    init_carry: Callable[[int], Carry]
    step: Callable[[Params, Carry, StepInputs], tuple[Carry, StepOutputs]]
    unroll: Callable[[Params, Carry, StepInputs], tuple[Carry, StepOutputs]]
    trainable: Callable[[Params], Params]
    """Returns 1 for every parameter that training may change and 0 for the rest."""


def make_policy(name: str, obs_dim: int, action_dim: int, **overrides: Any) -> Policy:
    """Return the model `name` of `MODELS`, sized for the task.

    Raises:
        ValueError: there is no such model.
    """
    config = CoreModelConfig.development(**{**SIZES, **overrides, "obs_dim": obs_dim, "action_dim": action_dim})
    if name in ABLATIONS:
        return _core(name, config)
    if name in _MIDDLES:
        return _baseline(name, config)
    raise ValueError(f"unknown model {name!r}; the models are {', '.join(MODELS)}")


def _core(name: str, config: CoreModelConfig) -> Policy:
    frozen = ABLATIONS[name]

    def trainable(params: Params) -> Params:
        def of(path: tuple[Any, ...], leaf: Array) -> Array:
            names = [str(part.key) for part in path]
            held = any(
                len(names) >= len(prefix)
                and all(part.startswith(wanted) for part, wanted in zip(names, prefix, strict=False))
                for prefix in frozen
            )
            return jnp.zeros((), leaf.dtype) if held else jnp.ones((), leaf.dtype)

        return jax.tree_util.tree_map_with_path(of, params)

    def init(rng: Key[Array, ""]) -> Params:
        params = init_params(config, rng)
        return jax.tree.map(jnp.multiply, params, trainable(params))

    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    free = jax.tree.map(lambda leaf, on: int(leaf.size * on), shapes, trainable(shapes))
    return Policy(
        name=name,
        parameters=sum(jax.tree.leaves(free)),
        init=init,
        init_carry=lambda batch: init_carry(config, batch),
        step=lambda params, carry, inputs: step(params, config, carry, inputs),
        unroll=lambda params, carry, inputs: unroll(params, config, carry, inputs),
        trainable=trainable,
    )


class _GRU(nn.Module):  # type: ignore[misc]
    """A gated recurrent unit (Cho et al., arXiv 1406.1078); its state starts at zero where an episode begins."""

    width: int

    @nn.compact  # type: ignore[untyped-decorator]
    def __call__(
        self, carry: Float32[Array, "B G"], driven: tuple[Float32[Array, "B E"], Float32[Array, "B"]]
    ) -> tuple[Float32[Array, "B G"], Float32[Array, "B G"]]:
        encoded, is_first = driven
        new, out = nn.GRUCell(self.width, name="gru")(carry * (1.0 - is_first[:, None]), encoded)
        return new, out


class _MLP(nn.Module):  # type: ignore[misc]
    """Two more layers and no state."""

    width: int

    @nn.compact  # type: ignore[untyped-decorator]
    def __call__(
        self, carry: Float32[Array, "B 0"], driven: tuple[Float32[Array, "B E"], Float32[Array, "B"]]
    ) -> tuple[Float32[Array, "B 0"], Float32[Array, "B G"]]:
        hidden = nn.silu(nn.Dense(self.width, name="first")(driven[0]))
        return carry, hidden + nn.silu(nn.Dense(self.width, name="second")(hidden))


_MIDDLES: dict[str, type[nn.Module]] = {"gru": _GRU, "mlp": _MLP}


class _Baseline(nn.Module):  # type: ignore[misc]
    """CoreModel's encoder and heads around another middle."""

    config: CoreModelConfig
    kind: str
    width: int

    def setup(self) -> None:
        self.encoder = Encoder(self.config)
        self.middle = _MIDDLES[self.kind](self.width)
        self.heads = Heads(self.config)

    def step(self, carry: Carry, inputs: StepInputs) -> tuple[Carry, StepOutputs]:
        encoded = self.encoder(inputs)
        carry, state = self.middle(carry, (encoded, inputs.is_first))
        return carry, self.heads(jnp.concatenate([encoded, state], axis=-1), inputs.observation)

    def unroll(self, carry: Carry, inputs: StepInputs) -> tuple[Carry, StepOutputs]:
        encoded = self.encoder(inputs)
        over_time = nn.scan(
            lambda middle, state, driven: middle(state, driven),
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        carry, states = over_time(self.middle, carry, (encoded, inputs.is_first))
        return carry, self.heads(jnp.concatenate([encoded, states], axis=-1), inputs.observation)


def _baseline(kind: str, config: CoreModelConfig) -> Policy:
    width = _width(kind, config)
    model = _Baseline(config, kind, width)

    def carry_of(batch: int) -> Carry:
        return jnp.zeros((batch, width if kind == "gru" else 0), jnp.float32)

    return Policy(
        name=kind,
        parameters=_count(kind, config, width),
        init=jax.jit(lambda rng: _init(model, carry_of(1), config, rng)),
        init_carry=carry_of,
        step=lambda params, carry, inputs: model.apply({"params": params}, carry, inputs, method="step"),
        unroll=lambda params, carry, inputs: model.apply({"params": params}, carry, inputs, method="unroll"),
        trainable=lambda params: jax.tree.map(lambda leaf: jnp.ones((), leaf.dtype), params),
    )


def _init(model: _Baseline, carry: Carry, config: CoreModelConfig, rng: Key[Array, ""]) -> Params:
    zeros, ones = jnp.zeros((1,), jnp.float32), jnp.ones((1,), jnp.float32)
    inputs = StepInputs(
        jnp.zeros((1, config.obs_dim), jnp.float32), jnp.zeros((1, config.action_dim), jnp.float32), zeros, ones
    )
    return model.init(rng, carry, inputs, method="step")["params"]


def _count(kind: str, config: CoreModelConfig, width: int) -> int:
    carry = jnp.zeros((1, width if kind == "gru" else 0), jnp.float32)
    model = _Baseline(config, kind, width)
    return count_parameters(jax.eval_shape(lambda: _init(model, carry, config, jax.random.key(0))))


@lru_cache
def _width(kind: str, config: CoreModelConfig) -> int:
    """Return the width whose parameter count is nearest to CoreModel's; the count grows with the width."""
    wanted = count_parameters(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    low, high = 1, 4096
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _count(kind, config, middle) <= wanted else (low, middle)
    return min((low, high), key=lambda width: abs(_count(kind, config, width) - wanted))
