"""The policy step as an ONNX graph with the parameters inside: `model.onnx`, static shapes, one row.

Inputs: the carry arrays by name, `observation`, `previous_action`, `previous_reward`, `is_first`, and `image`
[1, h, w, C] for a model that sees, its bytes as float32 (accelerators compile no cast); outputs: the carry arrays
as `next_<name>`, and `action`. A quantised bundle's graph holds the float32 values of its quantised
weights: it gives the quantised model's numbers with the operators that accelerators compile, whose own tools
quantise it again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from brain_service.errors import CorruptDataError, UnavailableError
from brain_service.export.onnx_graph import OPERATORS, OPSET, to_onnx
from brain_service.export.parity import Inputs, Stepper
from brain_service.export.policy import make_policy_step
from brain_service.export.quantise import dequantise
from brain_service.model.config import CoreModelConfig
from brain_service.model.state import carry_shapes
from brain_service.training.normalisation import Normaliser

__all__ = ["compile_step", "input_names", "load_step", "output_names"]


def input_names(carry: Mapping[str, int], *, image: bool = False) -> list[str]:
    """Return the graph's inputs in order; with `image` those of a model that sees."""
    return [*carry, *(name for name in Inputs._fields if image or name != "image")]


def output_names(carry: Mapping[str, int]) -> list[str]:
    """Return the graph's outputs in order."""
    return [*(f"next_{name}" for name in carry), "action"]


def compile_step(
    config: CoreModelConfig, normaliser: Normaliser, params: Mapping[str, np.ndarray[Any, Any]]
) -> bytes:
    """Return the checked graph's bytes.

    Raises:
        UnavailableError: the model uses an operation that has no rule here.
        CorruptDataError: the graph is not of the operators and the operator set that accelerators compile.
    """
    carry = carry_shapes(config)
    policy = make_policy_step(config, normaliser)
    weights = {name: jnp.asarray(array) for name, array in dequantise(params).items()}

    def step(*arrays: jax.Array) -> Sequence[jax.Array]:
        state, action = policy(weights, arrays[: len(carry)], *arrays[len(carry) :])
        return *state, action

    shapes: list[tuple[int, ...]] = [(1, size) for size in (*carry.values(), config.obs_dim, config.action_dim)]
    shapes += [(1,), (1,), *([(1, *config.image_shape)] if config.image_shape else [])]
    names = input_names(carry, image=bool(config.image_shape))
    model = to_onnx(step, dict(zip(names, shapes, strict=True)), output_names(carry))
    foreign = {node.op_type for node in model.graph.node} - OPERATORS
    versions = {(entry.domain, entry.version) for entry in model.opset_import}
    if foreign or versions != {("", OPSET)}:
        raise CorruptDataError(
            f"the ONNX graph holds {', '.join(sorted(foreign)) or versions}, which accelerators do not compile; "
            f"allowed are {', '.join(sorted(OPERATORS))} at operator set {OPSET}"
        )
    return bytes(model.SerializeToString())


def load_step(data: bytes, params: Mapping[str, np.ndarray[Any, Any]], carry: Mapping[str, int]) -> Stepper:  # noqa: ARG001  as every form
    """Return the graph ready to run in ONNX Runtime, on the CPU and one thread.

    Raises:
        UnavailableError: ONNX Runtime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # ONNX Runtime's exceptions have no common base below this one.
        raise UnavailableError(f"ONNX Runtime {onnxruntime.__version__} cannot load the graph: {error}") from error
    image = any(argument.name == "image" for argument in session.get_inputs())
    inputs, outputs = input_names(carry, image=image), output_names(carry)

    def step(state: tuple[Any, ...], *now: Any) -> tuple[tuple[Any, ...], Any]:
        floats = (np.asarray(values, np.float32) for values in (*state, *now))
        *after, action = session.run(outputs, dict(zip(inputs, floats, strict=True)))
        return tuple(after), action

    return step
