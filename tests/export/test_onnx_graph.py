"""The policy step as an ONNX graph: operators of small accelerators, the model's numbers in another runtime."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from brain_service.errors import UnavailableError
from brain_service.export.onnx_graph import OPERATORS, OPSET, to_onnx
from brain_service.export.policy import flat_params, make_policy_step
from brain_service.model.config import PRESETS, CoreModelConfig
from brain_service.model.core import init_params
from brain_service.model.state import carry_shapes
from tests.export.models import CONFIG, NORMALISER

# Written out, not imported: what is reported to compile for Hailo, plus the parts that normalisation is made of,
# and the convolution, which its public models consist of.
COMPILED = {
    "MatMul", "Gemm", "Sigmoid", "Tanh", "LayerNormalization", "Gelu", "Add", "Sub", "Mul", "Div", "Concat",
    "Clip", "Conv", "Transpose", "Exp", "Softmax", "Slice", "Reshape", "Sqrt",
}  # fmt: skip
STEPS, RESET = 64, 40

SMALL = CONFIG.to_dict()
CONFIGS = {
    "real wave": CONFIG,
    "rotating wave": CoreModelConfig.from_dict(SMALL | {"wave_pairs": 2}),
    "discrete": CoreModelConfig.from_dict(SMALL | {"action_kind": "discrete", "action_choices": 5}),
    # `tpu_large` differs from `tpu_optimized` in its sizes alone, and its graph takes gigabytes.
    **{name: preset(obs_dim=4, action_dim=2) for name, preset in PRESETS.items() if name != "tpu_large"},
}


def policy(config: CoreModelConfig) -> tuple[Callable[..., tuple[jax.Array, ...]], dict[str, tuple[int, ...]]]:
    """Return the policy step with its parameters inside, its results side by side, and its inputs by name."""
    step = make_policy_step(config, NORMALISER)
    params = {name: jnp.asarray(array) for name, array in flat_params(_disturbed(config)).items()}
    shapes = carry_shapes(config)

    def flat(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        carry, action = step(params, arrays[: len(shapes)], *arrays[len(shapes) :])
        return *carry, action

    sizes = {name: (1, size) for name, size in shapes.items()}
    return flat, sizes | {
        "observation": (1, 4), "previous_action": (1, 2), "previous_reward": (1,), "is_first": (1,),
    }  # fmt: skip


def _disturbed(config: CoreModelConfig) -> dict[str, object]:
    rng = np.random.default_rng(0)
    params: dict[str, object] = jax.tree.map(
        lambda leaf: np.asarray(leaf + 0.3 * rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])),
                                np.float32),
        init_params(config, jax.random.key(0)),
    )  # fmt: skip
    return params


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in PRESETS else name for name in CONFIGS]
)
def test_the_graph_gives_the_models_numbers_with_its_own_state_fed_back(name: str) -> None:
    config = CONFIGS[name]
    function, inputs = policy(config)
    outputs = [f"next_{part}" for part in carry_shapes(config)] + ["action"]
    model = to_onnx(function, inputs, outputs)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)] and OPSET <= 17
    assert {node.op_type for node in model.graph.node} <= COMPILED

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    step, rng = jax.jit(function), np.random.default_rng(1)
    span = NORMALISER.action_high - NORMALISER.action_low
    carries = [[np.zeros((1, size), np.float32) for size in carry_shapes(config).values()] for _ in range(2)]
    moved = []
    for t in range(STEPS):
        now = [
            (NORMALISER.observation_mean + NORMALISER.observation_std * rng.standard_normal(4))[None],
            NORMALISER.action_low[None] + span * rng.random(2)[None],
            np.asarray([rng.standard_normal()]),
            np.asarray([float(t in (0, RESET))]),
        ]
        now = [each.astype(np.float32) for each in now]
        *carries[0], expected = (np.asarray(each) for each in step(*carries[0], *now))
        feed = dict(zip(inputs, [*carries[1], *now], strict=True))
        *carries[1], action = session.run(outputs, feed)
        assert np.abs((action - expected) / span).max() <= 1e-4, t
        moved.append(action)
    assert np.ptp(moved, axis=0).max() > 0
    worst = max(float(np.abs(a - b).max()) for a, b in zip(*carries, strict=True))
    assert worst <= 1e-4


def test_a_primitive_without_a_rule_is_named() -> None:
    with pytest.raises(UnavailableError, match=r"primitive sort has no rule.*add"):
        to_onnx(lambda x: (jnp.sort(x),), {"x": (3,)}, ["y"])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x.sum(axis=0),), "sum over axes"),
        (lambda x: (x**3,), "power 3"),
        (lambda x: (jnp.maximum(x, x[::-1]),), "rev"),
        (lambda x: (jnp.maximum(x, 2 * x),), "max of two tensors"),
        (lambda x: (x[::2],), "strides|gather"),
        (lambda x: (jnp.stack([x, x]) @ jnp.stack([x, x]),), "batch|stack"),
    ],
)  # fmt: skip
def test_a_form_of_a_primitive_without_a_rule_is_named(
    function: Callable[[jax.Array], tuple[jax.Array]], message: str
) -> None:
    with pytest.raises(UnavailableError, match=message):
        to_onnx(function, {"x": (4, 4)}, ["y"])


def test_what_no_output_needs_and_what_constants_decide_is_not_in_the_graph() -> None:
    weight = jnp.arange(6.0).reshape(2, 3)
    model = to_onnx(lambda x: (jnp.tanh(x @ jnp.sin(weight)), jnp.exp(x))[:1], {"x": (1, 2)}, ["y"])
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Tanh", "Add"]


def test_an_output_may_be_an_input_or_a_constant() -> None:
    model = to_onnx(lambda x: (x, jnp.full((2,), 3.0)), {"x": (2,)}, ["same", "three"])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    same, three = session.run(None, {"x": np.asarray([1.0, 2.0], np.float32)})
    assert same.tolist() == [1.0, 2.0] and three.tolist() == [3.0, 3.0]


def test_no_operator_is_allowed_beyond_those_that_compile() -> None:
    assert OPERATORS <= COMPILED
