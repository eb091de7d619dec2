"""A JAX function becomes an ONNX graph that a small accelerator compiles.

The function is traced; what depends on constants alone (parameters) is computed here and now, and every operation
left is written with the operators of `OPERATORS`. There is a rule for each primitive that the policy step uses,
and an error for any other. General converters write Expand, Einsum, Squeeze and ConstantOfShape, which Hailo's
compiler does not take, so they do not suit. Imports `onnx`: for jobs only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from onnx import TensorProto, helper, numpy_helper

from brain_service.errors import UnavailableError

__all__ = ["OPERATORS", "OPSET", "to_onnx"]

OPSET = 17
OPERATORS = frozenset(
    (
        "Add", "Clip", "Concat", "Conv", "Div", "Exp", "MatMul", "Mul", "Reshape", "Sigmoid", "Slice", "Softmax",
        "Sqrt", "Sub", "Tanh", "Transpose",
    )
)  # fmt: skip
"""Operators that a graph may hold: those reported to compile for Hailo, Conv, which every model of its public zoo
is made of, and Reshape and Sqrt, of which its layer normalisation is made."""

Value = np.ndarray[Any, np.dtype[Any]] | np.float32 | str
"""A constant, or the name of a tensor in the graph."""


def to_onnx(
    function: Callable[..., Sequence[jax.Array]], inputs: Mapping[str, tuple[int, ...]], outputs: Sequence[str]
) -> onnx.ModelProto:
    """Return the checked graph of `function`, called with one float32 array of each shape in `inputs`, in order.

    `outputs` names the arrays that it returns. All shapes are static.

    Raises:
        UnavailableError: the function uses a primitive, or a form of one, that has no rule here.
    """
    traced = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, np.float32) for shape in inputs.values()))
    graph = _Graph()
    results = graph.run(traced.jaxpr, traced.consts, list(inputs))
    for name, result in zip(outputs, results, strict=True):
        # An output needs a node of its own, even where it is a constant or an input.
        graph.nodes.append(helper.make_node("Add", [graph.name(result), graph.name(np.float32(0))], [name]))
    nodes = _needed(graph.nodes, outputs)
    used = {name for node in nodes for name in node.input}
    made = helper.make_graph(
        nodes,
        "step",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, _shape(value))
            for name, value in zip(outputs, traced.jaxpr.outvars, strict=True)
        ],
        [numpy_helper.from_array(array, name) for name, array in graph.constants.items() if name in used],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    # What no output depends on goes: a policy does not answer the model's predictions of the world.
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _aval(atom: Any) -> Any:
    return atom.aval


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


class _Graph:
    """Nodes and constants of a graph in the making."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}

    def name(self, value: Value) -> str:
        """Return the tensor's name; a constant gets one."""
        if isinstance(value, str):
            return value
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def emit(self, operator: str, *values: Value, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        if operator not in OPERATORS:
            raise UnavailableError(f"{operator} is not an operator that accelerators compile; see OPERATORS")
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(operator, [self.name(value) for value in values], [output], **attributes)
        )
        return output

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
        """Append the operations of a traced function and return its results."""
        known: dict[Any, Value] = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
        known |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Value:
            return np.asarray(atom.val, _aval(atom).dtype) if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            results = self._equation(equation, [read(atom) for atom in equation.invars])
            known |= dict(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: JaxprEqn, values: list[Value]) -> list[Value]:
        name = equation.primitive.name
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        moving = any(isinstance(value, str) for value in values)
        if moving and isinstance(inner, ClosedJaxpr) and equation.params.get("name") == "softmax":
            return [self.emit("Softmax", values[0], axis=-1)]
        if isinstance(inner, ClosedJaxpr):
            return self.run(inner.jaxpr, inner.consts, values)
        if not moving:
            found = equation.primitive.bind(*values, **equation.params)
            return [np.asarray(each) for each in (found if equation.primitive.multiple_results else [found])]
        if name not in _RULES:
            raise UnavailableError(
                f"primitive {name} has no rule for ONNX; the rules are {', '.join(sorted(_RULES))}"
            )
        result = _RULES[name](self, equation, values)
        return result if isinstance(result, list) else [result]

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """Return the value under another shape of the same size."""
        if isinstance(value, str):
            return self.emit("Reshape", value, np.asarray(shape, np.int64))
        return np.asarray(value).reshape(shape)

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """Return the value with its axes in another order."""
        if list(order) == sorted(order):
            return value
        if isinstance(value, str):
            return self.emit("Transpose", value, perm=[int(axis) for axis in order])
        return np.asarray(value).transpose(order)

    def cut(self, value: Value, axis: int, start: int, stop: int) -> str:
        """Return the entries `start` to `stop` along an axis."""
        return self.emit("Slice", value, *(np.asarray([n], np.int64) for n in (start, stop, axis)))


Rule = Callable[[_Graph, JaxprEqn, list[Value]], Value | list[Value]]


def _plain(operator: str) -> Rule:
    return lambda graph, _, values: graph.emit(operator, *values)


def _negate(graph: _Graph, _: JaxprEqn, values: list[Value]) -> Value:
    return graph.emit("Mul", values[0], np.float32(-1.0))


def _square(graph: _Graph, equation: JaxprEqn, values: list[Value]) -> Value:
    if equation.params.get("y", 2) != 2:
        raise UnavailableError(f"power {equation.params['y']} has no rule for ONNX; write it as products")
    return graph.emit("Mul", values[0], values[0])


def _bound(lower: bool) -> Rule:
    # An empty name leaves the lower bound of Clip out.
    def clip(graph: _Graph, value: Value, bound: np.float32) -> str:
        return graph.emit("Clip", value, bound) if lower else graph.emit("Clip", value, "", bound)

    def rule(graph: _Graph, equation: JaxprEqn, values: list[Value]) -> Value:
        fixed = [value for value in values if not isinstance(value, str)]
        if len(fixed) != 1:
            raise UnavailableError(
                f"{equation.primitive.name} of two tensors has no rule for ONNX; bound by numbers"
            )
        moving = next(value for value in values if isinstance(value, str))
        bounds = np.asarray(fixed[0])
        if np.ptp(bounds) == 0:
            return clip(graph, moving, np.float32(bounds.reshape(-1)[0]))
        # Clip takes one number: a bound an element is zero for what goes beyond it.
        return graph.emit("Add", clip(graph, graph.emit("Sub", moving, bounds), np.float32(0)), bounds)

    return rule


def _identity(_: _Graph, __: JaxprEqn, values: list[Value]) -> Value:
    return values[0]


def _reshape(graph: _Graph, equation: JaxprEqn, values: list[Value]) -> Value:
    return graph.reshape(values[0], _shape(equation.outvars[0]))


def _broadcast(graph: _Graph, equation: JaxprEqn, values: list[Value]) -> Value:
    shape = equation.params["shape"]
    source = [1] * len(shape)
    for axis, size in zip(equation.params["broadcast_dimensions"], _shape(equation.invars[0]), strict=True):
        source[axis] = size
    value = graph.reshape(values[0], source)
    # Elementwise operators stretch an axis of size one by themselves; Expand is not to be had.
    return value if tuple(source) == tuple(shape) else graph.emit("Mul", value, np.ones(shape, np.float32))


def _concatenate(graph: _Graph, equation: JaxprEqn, values: list[Value]) -> Value:
    return graph.emit("Concat", *values, axis=equation.params["dimension"])


def _slice(graph: _Graph, equation: JaxprEqn, values: list[Value]) -> Value:
    params, value = equation.params, values[0]
    if any(stride != 1 for stride in params["strides"] or ()):
        raise UnavailableError("a slice with strides has no rule for ONNX")
    limits = zip(params["start_indices"], params["limit_indices"], _shape(equation.invars[0]), strict=True)
    for axis, (start, stop, size) in enumerate(limits):
        if (start, stop) != (0, size):
            value = graph.cut(value, axis, start, stop)
    return value


def _split(graph: _Graph, equation: JaxprEqn, values: list[Value]) -> list[Value]:
    ends = np.cumsum(equation.params["sizes"]).tolist()
    return [
        graph.cut(values[0], equation.params["axis"], start, stop)
        for start, stop in zip([0, *ends], ends, strict=False)
    ]


def _sum(graph: _Graph, equation: JaxprEqn, values: list[Value]) -> Value:
    shape = _shape(equation.invars[0])
    if equation.params["axes"] != (len(shape) - 1,):
        raise UnavailableError(
            f"a sum over axes {equation.params['axes']} has no rule for ONNX; sum over the last"
        )
    # A product with ones: compilers for accelerators know it, and not every sum.
    product = graph.emit("MatMul", values[0], np.ones((shape[-1], 1), np.float32))
    return graph.reshape(product, _shape(equation.outvars[0]))


def _transpose(graph: _Graph, equation: JaxprEqn, values: list[Value]) -> Value:
    return graph.transpose(values[0], equation.params["permutation"])


def _product(graph: _Graph, equation: JaxprEqn, values: list[Value]) -> Value:
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left, right = (_shape(atom) for atom in equation.invars)
    if len(left_sum) != 1 or left_batch or right_batch:
        raise UnavailableError("only products over one axis, without batch axes, have a rule for ONNX")
    # Both sides as matrices: free axes, then the summed one; and the reverse.
    left_order = [axis for axis in range(len(left)) if axis != left_sum[0]] + [left_sum[0]]
    right_order = [right_sum[0]] + [axis for axis in range(len(right)) if axis != right_sum[0]]
    depth = left[left_sum[0]]
    first, second = graph.transpose(values[0], left_order), graph.transpose(values[1], right_order)
    if len(left) != 2:
        first = graph.reshape(first, (-1, depth))
    if len(right) != 2:
        second = graph.reshape(second, (depth, -1))
    result: Value = graph.emit("MatMul", first, second)
    shape = _shape(equation.outvars[0])
    return result if len(shape) == 2 else graph.reshape(result, shape)


def _convolution(graph: _Graph, equation: JaxprEqn, values: list[Value]) -> Value:
    params = equation.params
    numbers = params["dimension_numbers"]
    kernel = values[1]
    plain = {*params["lhs_dilation"], *params["rhs_dilation"], params["feature_group_count"]} == {1}
    if isinstance(kernel, str) or not plain or params["batch_group_count"] != 1:
        raise UnavailableError("only plain convolutions with constant kernels have a rule for ONNX")
    before, after = zip(*params["padding"], strict=True)
    found = graph.emit(
        "Conv",
        graph.transpose(values[0], numbers.lhs_spec),
        graph.transpose(kernel, numbers.rhs_spec),
        strides=[int(stride) for stride in params["window_strides"]],
        pads=[int(pad) for pad in (*before, *after)],
    )
    return graph.transpose(found, np.argsort(numbers.out_spec).tolist())


_RULES: Mapping[str, Rule] = {
    "add": _plain("Add"),
    "add_any": _plain("Add"),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "copy": _identity,
    "div": _plain("Div"),
    "dot_general": _product,
    "exp": _plain("Exp"),
    "integer_pow": _square,
    "logistic": _plain("Sigmoid"),
    "max": _bound(lower=True),
    "min": _bound(lower=False),
    "mul": _plain("Mul"),
    "neg": _negate,
    "reduce_sum": _sum,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "sqrt": _plain("Sqrt"),
    "square": _square,
    "squeeze": _reshape,
    "stop_gradient": _identity,
    "sub": _plain("Sub"),
    "tanh": _plain("Tanh"),
    "transpose": _transpose,
}
