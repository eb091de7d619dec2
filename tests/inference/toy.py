"""A model small enough to be computed by hand beside the worker that runs it.

Its carry is a leaky sum of observations and a count of steps, so one step too many, too few, or from another
session's state shows in the next action.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float32
from safetensors.numpy import save

from brain_service.export.bundle import GOLDEN, JAX_STEP, ONNX_MODEL, PARAMS, Golden, write_bundle
from brain_service.export.manifest import Manifest, Parity
from brain_service.spec import EpisodeSpec, Feature

SPEC = EpisodeSpec(
    observation={"arm/joints": Feature("float32", (2,)), "load": Feature("float32")},
    action={"gripper": Feature("float32"), "velocity": Feature("float32", (1,))},
)
LIMIT = 5.0
NONFINITE = 1e6
"""A `load` above this makes the model answer NaN."""

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass
class Reference:
    """The toy model in NumPy: the action chunk [H=2, A=2] that the worker must answer."""

    scale: float = 1.0
    total: Floats = field(default_factory=lambda: np.zeros(2, np.float32))
    count: float = 0.0
    previous: Floats = field(default_factory=lambda: np.zeros(2, np.float32))

    def step(self, observation: Floats, reward: float | None = None) -> Floats:
        if self.count == 0 or reward is None:
            reward = 0.0
        self.total = (0.5 * self.total + observation[:2]).astype(np.float32)
        self.count += 1.0
        raw = self.scale * (self.total + 0.1 * self.previous + 0.01 * reward + 0.001 * self.count)
        first = np.clip(raw, -LIMIT, LIMIT).astype(np.float32)
        self.previous = first
        return np.stack([first, -first])


def _finite_policy(
    params: dict[str, Array],
    carry: tuple[Array, ...],
    observation: Float32[Array, "B 3"],
    previous_action: Float32[Array, "B 2"],
    previous_reward: Float32[Array, " B"],
    is_first: Float32[Array, " B"],
) -> tuple[tuple[Array, ...], Float32[Array, "B 2 2"]]:
    keep = (1.0 - is_first)[:, None]
    total = 0.5 * keep * carry[0] + observation[:, :2]
    count = keep * carry[1] + 1.0
    raw = params["scale"] * (
        total + 0.1 * keep * previous_action + 0.01 * keep * previous_reward[:, None] + 0.001 * count
    )
    first = jnp.clip(raw, -LIMIT, LIMIT)
    return (total, count), jnp.concatenate([first, -first], axis=1).reshape(-1, 2, 2)


def _policy(
    params: dict[str, Array],
    carry: tuple[Array, ...],
    observation: Float32[Array, "B 3"],
    *rest: Array,
) -> tuple[tuple[Array, ...], Float32[Array, "B 2 2"]]:
    carry, chunk = _finite_policy(params, carry, observation, *rest)
    return carry, jnp.where(observation[:, 2:, None] > params["nan_above"], jnp.nan, chunk)


def toy_graph(scale: float) -> bytes:
    """Return the toy as an ONNX graph; it never answers NaN."""
    from brain_service.export.onnx_graph import to_onnx

    params = {"scale": jnp.full(2, scale, jnp.float32)}

    def flat(*arrays: Array) -> tuple[Array, ...]:
        carry, chunk = _finite_policy(params, arrays[:2], *arrays[2:])
        return *carry, chunk

    inputs = {"total": (1, 2), "count": (1, 1), "observation": (1, 3), "previous_action": (1, 2)}
    return bytes(
        to_onnx(
            flat,
            inputs | {"previous_reward": (1,), "is_first": (1,)},
            ["next_total", "next_count", "action"],
        ).SerializeToString()
    )


def toy_observation(rng: np.random.Generator) -> Floats:
    """Return a random flat observation [3]."""
    return rng.uniform(-1.0, 1.0, 3).astype(np.float32)


def as_tree(observation: Floats) -> dict[str, Any]:
    """Return a flat observation under the toy's names, as a JSON body would bring it."""
    return {"arm": {"joints": observation[:2].tolist()}, "load": float(observation[2])}


def build_toy(
    models_dir: Path,
    scale: float = 1.0,
    golden_error: float = 0.0,
    control_period_s: float | None = None,
    graph: bytes | None = None,
    nan_above: float = NONFINITE,
    spec: EpisodeSpec = SPEC,
    usual_reward: float | None = None,
) -> str:
    """Write a bundle of the toy model and return its id; `golden_error` is added to its reference outputs.

    A `load` above `nan_above` makes it answer NaN; `spec` names its three observations and two actions. With a
    `graph` the bundle also holds it as its ONNX form. `usual_reward` is what its training had in the mean.
    """
    (rows,) = export.symbolic_shape("rows")
    shapes = [(rows, 2), (rows, 1)], (rows, 3), (rows, 2), (rows,), (rows,)
    carry = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes[0])
    rest = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes[1:]]
    params = {"scale": np.full(2, scale, np.float32), "nan_above": np.full(1, nan_above, np.float32)}
    step = export.export(jax.jit(_policy), platforms=["cpu"])(params, carry, *rest)
    files = {
        PARAMS: save(params),
        JAX_STEP: bytes(step.serialize()),
        GOLDEN: toy_golden(scale, golden_error).to_bytes(),
    }
    if graph is not None:
        files[ONNX_MODEL] = graph
    parity = {form: Parity(measured=0.0, bound=1e-5) for form in ("jax", "onnx")[: 1 + (graph is not None)]}
    draft = Manifest(
        config={"toy": True},
        spec=spec,
        action_low=(-LIMIT, -LIMIT),
        action_high=(LIMIT, LIMIT),
        normalisation={} if usual_reward is None else {"reward_mean": (usual_reward,)},
        carry={"total": 2, "count": 1},
        action_horizon=2,
        control_period_s=control_period_s,
        parity=parity,
        evaluation={"scale": scale},
    )
    return write_bundle(models_dir, draft, files)


def toy_golden(scale: float, error: float = 0.0) -> Golden:
    rng = np.random.default_rng(7)
    steps = 16
    observation = rng.uniform(-1, 1, (steps, 3)).astype(np.float32)
    reward = rng.uniform(-1, 1, steps).astype(np.float32)
    is_first = np.zeros(steps, np.float32)
    is_first[[0, 9]] = 1.0
    previous, action = np.zeros((steps, 2), np.float32), np.zeros((steps, 2, 2), np.float32)
    reference = Reference(scale)
    for t in range(steps):
        if is_first[t]:
            reference = Reference(scale)
        previous[t] = reference.previous
        action[t] = reference.step(observation[t], float(reward[t]))
    return Golden(observation, previous, reward, is_first, action + np.float32(error))
